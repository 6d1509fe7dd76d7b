package contestants

import (
	"context"
	"errors"
	"strconv"

	"github.com/redis/rueidis"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// redis stores a coupon under three keys with one hash tag: a hash with amount and
// remaining_amount, a set of its users, and a list of them in claim order. The client is rueidis,
// which Redis recommends: it pipelines the commands of concurrent goroutines on one connection, and
// is the fastest Go client for this.
type redis struct {
	client rueidis.Client
}

// claimScript is atomic because Redis runs one script at a time. It returns values of claim_status.
var claimScript = rueidis.NewLuaScript(`
local remaining = redis.call('hget', KEYS[1], 'remaining_amount')
if not remaining then
  return 'coupon_not_found'
end
if tonumber(remaining) == 0 then
  if redis.call('sismember', KEYS[2], ARGV[1]) == 1 then
    return 'already_claimed'
  end
  return 'out_of_stock'
end
if redis.call('sadd', KEYS[2], ARGV[1]) == 0 then
  return 'already_claimed'
end
redis.call('rpush', KEYS[3], ARGV[1])
redis.call('hincrby', KEYS[1], 'remaining_amount', -1)
return 'claimed'
`)

var createScript = rueidis.NewLuaScript(`
if redis.call('exists', KEYS[1]) == 1 then
  return 'coupon_exists'
end
redis.call('hset', KEYS[1], 'amount', ARGV[1], 'remaining_amount', ARGV[1])
return 'created'
`)

// readScript reads one state: no claim runs between its two commands.
var readScript = rueidis.NewLuaScriptReadOnly(`
local coupon = redis.call('hmget', KEYS[1], 'amount', 'remaining_amount')
if not coupon[1] then
  return {}
end
return {coupon[1], coupon[2], redis.call('lrange', KEYS[3], 0, -1)}
`)

func openRedis(_ context.Context, address string) (api.Store, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, DisableCache: true})
	return redis{client}, err
}

func keys(name string) []string {
	return []string{"coupon:{" + name + "}", "users:{" + name + "}", "claims:{" + name + "}"}
}

func (s redis) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	status, err := claimScript.Exec(ctx, s.client, keys(name), []string{user}).ToString()
	return pgstore.ClaimStatus(status), err
}

func (s redis) CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	status, err := createScript.Exec(ctx, s.client, keys(name), []string{strconv.Itoa(int(amount))}).ToString()
	return pgstore.CreateStatus(status), err
}

func (s redis) Coupon(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
	state, err := readScript.Exec(ctx, s.client, keys(name), nil).ToArray()
	if err != nil || len(state) == 0 {
		return nil, false, err
	}
	amount, err1 := state[0].AsInt64()
	remaining, err2 := state[1].AsInt64()
	claimers, err3 := state[2].AsStrSlice()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, false, err
	}
	coupon := pgstore.NewCoupon(name, int(amount), claimers)
	coupon.RemainingAmount = int(remaining) // the race compares it with the claimers
	return coupon, true, nil
}

func (s redis) Ready(ctx context.Context) ([]pgstore.Shard, error) {
	return nil, s.client.Do(ctx, s.client.B().Ping().Build()).Error()
}
