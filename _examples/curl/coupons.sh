#!/bin/sh
# An example of a client with curl and jq, with correct timeouts and retries:
#
#   coupons.sh create NAME AMOUNT
#   coupons.sh claim USER NAME
#   coupons.sh read NAME
#
# COUPOND_URL is the URL of the service. Exit status:
#
#   0  success; for a claim: the user has the coupon
#   1  sold out, no such coupon, or the coupon exists
#   2  invalid usage or request
#   3  no success within a minute: the outcome is unknown, run it again
set -eu

url=${COUPOND_URL:-http://127.0.0.1:8080}
while [ "$url" != "${url%/}" ]; do url=${url%/}; done
body=$(mktemp)
trap 'rm -f "$body"' EXIT

# send METHOD PATH [JSON]: prints the status and writes the body to the file $body.
#
# An attempt may take 10 s. The service responds within 5 s; a shorter timeout here would abandon
# claims that are about to succeed. All requests of this API are safe to repeat, so curl retries
# after every broken connection and every 5xx. It waits for Retry-After, or 1, 2, 4, … seconds.
# These delays are not random: that is fine for a script, but if thousands of clients retry at the
# same time, use the client in ../go.
#
# curl follows no redirect: a redirected POST would become a GET, and GET /api/coupons/claim reads the
# coupon "claim". Without --path-as-is, it would remove the names . and .. from the path.
send() {
    method=$1 path=$2
    shift 2
    curl --silent --show-error --no-location --path-as-is --request "$method" "$url$path" \
        --max-time 10 --retry 20 --retry-max-time 60 --retry-all-errors \
        --output "$body" --write-out '%{http_code}' \
        ${1:+--header 'Content-Type: application/json' --data-raw "$1"}
}

# code: prints the code of an error response, or nothing if it is not JSON, as from a proxy.
code() { jq --raw-output '.code? // empty' "$body" 2>/dev/null || true; }

fail() {
    case $1 in 3*) echo "$1: redirected; set COUPOND_URL to the URL that it redirects to" >&2 && exit 2 ;; esac
    echo "$1: $(jq --raw-output '"\(.error) (\(.code), request id \(.request_id))"' "$body" 2>/dev/null || echo 'not a response of the service')" >&2
    case $1 in 5* | 429) exit 3 ;; *) exit 2 ;; esac
}

case "${1-} $#" in
'create 3')
    # jq escapes special characters in the name.
    status=$(send POST /api/coupons "$(jq --null-input --arg name "$2" --argjson amount "$3" '{$name, $amount}')") || exit 3
    case "$status $(code)" in
    '201 ') echo created ;;
    '409 COUPON_EXISTS') echo 'exists; after a broken connection it may be the one you created: read it' && exit 1 ;;
    *) fail "$status" ;;
    esac
    ;;
'claim 3')
    status=$(send POST /api/coupons/claim "$(jq --null-input --arg user_id "$2" --arg coupon_name "$3" '{$user_id, $coupon_name}')") || exit 3
    case "$status $(code)" in
    '201 ') echo claimed ;;
    # By an earlier claim, or by an earlier attempt of this one if its response was lost.
    '409 ALREADY_CLAIMED') echo 'already claimed' ;;
    '400 OUT_OF_STOCK') echo 'sold out' && exit 1 ;;
    '404 COUPON_NOT_FOUND') echo 'no such coupon' && exit 1 ;;
    *) fail "$status" ;;
    esac
    ;;
'read 2')
    # Other programs on the way may remove . and .. as well, unless they are encoded.
    name=$(jq --null-input --raw-output --arg name "$2" \
        '$name | if . == "." then "%2E" elif . == ".." then "%2E%2E" else @uri end')
    status=$(send GET "/api/coupons/$name") || exit 3
    case "$status $(code)" in
    '200 ') cat "$body" ;;
    '404 COUPON_NOT_FOUND') echo 'no such coupon' && exit 1 ;;
    *) fail "$status" ;;
    esac
    ;;
*)
    sed -n 's/^#   coupons/coupons/p' "$0" >&2
    exit 2
    ;;
esac
