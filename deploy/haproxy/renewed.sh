#!/bin/sh
# Installs a certificate of certbot in HAProxy: chain and key in one file, which is replaced atomically.
#
#   install -m 755 deploy/haproxy/renewed.sh /etc/letsencrypt/renewal-hooks/deploy/samovar      after every renewal
#   RENEWED_LINEAGE=/etc/letsencrypt/live/samovar.example.org sh deploy/haproxy/renewed.sh      the first time

set -eu
umask 077
target=${1:-/etc/haproxy/samovar.pem}
cat "$RENEWED_LINEAGE/fullchain.pem" "$RENEWED_LINEAGE/privkey.pem" >"$target.new"
mv "$target.new" "$target"
systemctl try-reload-or-restart haproxy
