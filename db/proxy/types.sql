-- The outcomes. If a shard returns a label that the proxy lacks, the call fails, so add a new label
-- to the proxies first: below, with "alter type … add value if not exists".
do $$
begin
  if to_regtype('coupond.claim_status') is null then
    create type coupond.claim_status as enum ('claimed', 'already_claimed', 'out_of_stock', 'coupon_not_found');
  end if;
  if to_regtype('coupond.create_status') is null then
    create type coupond.create_status as enum ('created', 'coupon_exists');
  end if;
end;
$$;
