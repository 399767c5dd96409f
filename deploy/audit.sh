#!/bin/sh
# Looks up every version in constraints.txt in the OSV database. Exits 1 if a vulnerability is known or the database
# can't be reached. Sends only names and versions. Run by `make audit`. PIP_AUDIT_OSV_URL sets another database with the
# same API (https://api.osv.dev/v1/query).

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
