#!/bin/sh
# Which of the Debian packages in $1 are missing; installs them where it may, else says how.
missing=
for package in $1; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "missing packages:$missing"
if [ "$(id -u)" = 0 ]; then
    as=
elif command -v sudo >/dev/null; then
    as=sudo
else
    echo "install them with: apt-get install$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
$as apt-get update -qq && $as apt-get install -y -qq --no-install-recommends $missing >/dev/null
