#!/bin/bash
# Makes a stand-in for python:3.11-slim out of Debian's packages and a Python of this machine.
# As root, in an empty folder; needs debootstrap and docker:
#   base.sh FOLDER PREFIX-OF-PYTHON IMAGE LABEL=VALUE
set -euo pipefail
root=$1/root
prefix=$2
debootstrap --variant=minbase --include=ca-certificates bookworm "$root"
chroot "$root" sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends \
  libssl3 libsqlite3-0 libffi8 libbz2-1.0 liblzma5 libreadline8 libncursesw6 libuuid1 libexpat1 \
  netbase tzdata zlib1g libcrypt1 libtirpc3 && apt-get clean'
tar -C "$prefix" -cf - --exclude=__pycache__ --exclude='lib/python3.11/site-packages/*' \
  --exclude=lib/python3.11/test --exclude='lib/python3.11/config-*' \
  lib/python3.11 lib/libpython3.11.so.1.0 bin/python3.11 include/python3.11 \
  | tar -C "$root/usr/local" -xf -
ln -sf python3.11 "$root/usr/local/bin/python3"
ln -sf python3 "$root/usr/local/bin/python"
# Whom this machine trusts beside, for builds behind a proxy.
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$root" update-ca-certificates
chroot "$root" ldconfig
chroot "$root" python3 -m ensurepip
ln -sf pip3 "$root/usr/local/bin/pip"
# What the slim one leaves out as well.
rm -rf "$root"/usr/share/{doc,man,locale}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
find "$root/usr" -name __pycache__ -prune -exec rm -rf {} +
bundle=/etc/ssl/certs/ca-certificates.crt
tar -C "$root" -c . | docker import \
  --change "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 SSL_CERT_FILE=$bundle PIP_CERT=$bundle" \
  --change 'CMD ["python3"]' --change "LABEL $4" - "$3"
