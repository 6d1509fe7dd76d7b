-- Internal: refuses a call for coupons that another server owns, before any lookup:
-- coupon_not_found would be wrong. It checks a whole batch in one statement.
create or replace function coupond.check_shards(p_coupons text[])
returns void
language plpgsql
stable
as $$
declare
  v_other text;
begin
  if not exists (select from coupond.shard) then
    return;
  end if;

  select p.coupon_name
  into v_other
  from coupond.shard as s
  cross join unnest(p_coupons) as p (coupon_name)
  where s.singleton
    and hashtext(p.coupon_name collate "C") & (s.partitions - 1) <> all (s.owned)
  limit 1;

  if found then
    raise exception using
      errcode = 'SC421',
      message = 'this server does not own the coupon',
      detail = format('It is %s.', quote_literal(v_other)),
      hint = 'Its partition was moved, or the proxy has a different map of partitions.';
  end if;
end;
$$;

comment on function coupond.check_shards(text[]) is
  'Internal. Raises SC421 unless owns_coupon() is true for all p_coupons, so that nothing is answered or written for them.';
