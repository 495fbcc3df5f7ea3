#!/bin/sh
# Creates the secrets of docker-compose.yml in deploy/secrets: a password and a Redis URL per role, and the ACL file for
# Redis, which contains only hashes of the passwords. Existing passwords are not changed, so run this script again after
# an update of users.acl. To change the passwords, delete deploy/secrets first.
set -eu
cd "$(dirname "$0")"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

# Containers run as other users than the owner of these files, so the files are readable, but the folder is private.
save() {
  cat >"secrets/$1.new"
  chmod 444 "secrets/$1.new"
  mv -f "secrets/$1.new" "secrets/$1"
}

mkdir -p secrets
chmod 700 secrets
users=$(cat users.acl)
for role in admin server worker; do
  [ -s "secrets/${role}_password" ] || random | save "${role}_password"
  password=$(cat "secrets/${role}_password")
  printf 'redis://%s:%s@redis:6379/0\n' "$role" "$password" | save "${role}_redis_url"
  hash=$(printf '%s' "$password" | sha256)
  users=$(printf '%s' "$users" | sed "s/>change-$role-password/#$hash/")
done
case $users in
*\>*)
  echo "create_secrets.sh: deploy/users.acl contains a password in plain text. Use the file from the repository." >&2
  exit 1
  ;;
esac
printf '%s\n' "$users" | save users.acl
echo "Created the secrets for Redis in $(pwd)/secrets."
