-- The outcomes, as labels. A label that a shard answers and the proxy lacks is an error, so a new one comes to the proxies
-- first: add it below, by "alter type … add value if not exists".
do $$
begin
  if to_regtype('public.claim_status') is null then
    create type public.claim_status as enum ('claimed', 'already_claimed', 'out_of_stock', 'coupon_not_found');
  end if;
  if to_regtype('public.create_status') is null then
    create type public.create_status as enum ('created', 'coupon_exists');
  end if;
end;
$$;
