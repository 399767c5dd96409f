#!/bin/sh
# Asks the OSV database about every version in constraints.txt; exit 1 if something is known, or if it can't be asked.
# Only names and versions are told to it. Run by `make audit`. PIP_AUDIT_OSV_URL names another database of its kind
# (https://api.osv.dev/v1/query).

cd "$(dirname "$0")/.." || exit 1
answer=$(.venv/bin/pip-audit --vulnerability-service osv --requirement "${1:-constraints.txt}" --no-deps --disable-pip \
    --strict --progress-spinner off 2>&1)
code=$?
case $answer in
    *"requests.exceptions."* | *ConnectionError* | *ReadTimeout*)
        echo "Nothing was audited: the database of known weaknesses can't be reached from this machine." >&2
        echo "未能审计：本机无法访问漏洞数据库。" >&2
        exit 1
        ;;
esac
echo "$answer" | grep -v "Consider using a tool like"
exit $code
