#!/bin/sh
# Lets nginx read a certificate anew that certbot has renewed. /etc/nginx/samovar.crt and .key are links into
# /etc/letsencrypt/live, as docs/operations.md makes them, and nginx reads what they lead to only when it is loaded.
#
#   install -m 755 deploy/nginx/renewed.sh /etc/letsencrypt/renewal-hooks/deploy/samovar

set -eu
systemctl try-reload-or-restart nginx
