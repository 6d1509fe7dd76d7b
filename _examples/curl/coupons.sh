#!/bin/sh
# The coupons with curl and jq, time-outs and retries done right:
#
#   coupons.sh create NAME AMOUNT
#   coupons.sh claim USER NAME
#   coupons.sh read NAME
#
# COUPONS_URL says where the service is. Exit status: 0 done (and for a claim: the user has the coupon), 1 the service says no,
# 2 a mistake, 3 no answer for a minute: nobody knows, run it again.
set -eu

url=${COUPONS_URL:-http://127.0.0.1:8080}
body=$(mktemp)
trap 'rm -f "$body"' EXIT

# ask METHOD PATH [JSON]: prints the status; the body is in the file.
#
# Each try may take 10 s, twice what the service takes at most: whoever waits less gives up on claims that are about to be
# answered. All requests of this API are safe to send again, so curl does after every broken connection and every 5xx, pausing
# for Retry-After, or 1, 2, 4, … seconds. There is no chance in these pauses: right for a script, but where thousands retry
# together take the client in ../go.
ask() {
    method=$1 path=$2
    shift 2
    curl --silent --show-error --request "$method" "$url$path" \
        --max-time 10 --retry 20 --retry-max-time 60 --retry-all-errors \
        --output "$body" --write-out '%{http_code}' \
        ${1:+--header 'Content-Type: application/json' --data-raw "$1"}
}

# code: what the service says, in one word. A proxy in between may answer in HTML; then it is empty.
code() { jq --raw-output '.code? // empty' "$body" 2>/dev/null || true; }

refused() {
    echo "$1: $(jq --raw-output '"\(.error) (\(.code), request id \(.request_id))"' "$body" 2>/dev/null || echo 'no answer of the service')" >&2
    case $1 in 5* | 429) exit 3 ;; *) exit 2 ;; esac
}

case "${1-} $#" in
'create 3')
    # jq quotes whatever the name holds.
    status=$(ask POST /api/coupons "$(jq --null-input --arg name "$2" --argjson amount "$3" '{$name, $amount}')") || exit 3
    case "$status $(code)" in
    '201 ') echo created ;;
    '409 COUPON_EXISTS') echo 'exists; after a broken connection maybe by this very call: read it' && exit 1 ;;
    *) refused "$status" ;;
    esac
    ;;
'claim 3')
    status=$(ask POST /api/coupons/claim "$(jq --null-input --arg user_id "$2" --arg coupon_name "$3" '{$user_id, $coupon_name}')") || exit 3
    case "$status $(code)" in
    '201 ') echo claimed ;;
    # By an earlier claim: maybe a try of this very call, whose answer was lost.
    '409 ALREADY_CLAIMED') echo 'has it' ;;
    '400 OUT_OF_STOCK') echo 'sold out' && exit 1 ;;
    '404 COUPON_NOT_FOUND') echo 'no such coupon' && exit 1 ;;
    *) refused "$status" ;;
    esac
    ;;
'read 2')
    status=$(ask GET "/api/coupons/$(jq --null-input --raw-output --arg name "$2" '$name | @uri')") || exit 3
    case "$status $(code)" in
    '200 ') cat "$body" ;;
    '404 COUPON_NOT_FOUND') echo 'no such coupon' && exit 1 ;;
    *) refused "$status" ;;
    esac
    ;;
*)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
esac
