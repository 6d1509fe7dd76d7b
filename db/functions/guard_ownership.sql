-- Internal: a call for a coupon of another server is refused, before anything is looked up: "no such coupon" would be an
-- answer, and a wrong one. One statement for the whole crowd. The functions ask first whether there is a shard at all, which
-- on a single server spares them this call: 2.6 µs instead of 11, on a busy machine.
create or replace function public.guard_ownership(variadic p_coupons text[])
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_other text;
begin
  select w.coupon_name
  into v_other
  from public.shard as s
  cross join unnest(p_coupons) as w (coupon_name)
  where s.singleton
    and hashtext(w.coupon_name) & (s.partitions - 1) <> all (s.owned)
  limit 1;

  if found then
    raise exception using
      errcode = 'SC421',
      message = 'this server does not own the coupon',
      detail = format('It is %s.', quote_literal(v_other)),
      hint = 'It has been moved, or the proxy has another map of partitions.';
  end if;
end;
$$;

comment on function public.guard_ownership(text[]) is
  'Internal. Raises SC421 unless owns_coupon() is true of every one of p_coupons. Nothing has been written then, nor looked up.';

revoke all on function public.guard_ownership(text[]) from public;
