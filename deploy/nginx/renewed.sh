#!/bin/sh
# Makes nginx reload a certificate that certbot has renewed. /etc/nginx/samovar.crt and .key are links into
# /etc/letsencrypt/live (see docs/operations.md), and nginx reads the linked files only when it loads.
#
#   install -m 755 deploy/nginx/renewed.sh /etc/letsencrypt/renewal-hooks/deploy/samovar

set -eu
systemctl try-reload-or-restart nginx
