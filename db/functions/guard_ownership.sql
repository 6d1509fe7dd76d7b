-- Internal: refuses a call for a coupon that another server owns, before any lookup:
-- coupon_not_found would be wrong. It checks a whole batch in one statement. Callers first check
-- that public.shard has a row, which on a single server saves them this call (ADR 0015).
create or replace function public.guard_ownership(variadic p_coupons text[])
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_other text;
begin
  select p.coupon_name
  into v_other
  from public.shard as s
  cross join unnest(p_coupons) as p (coupon_name)
  where s.singleton
    and hashtext(p.coupon_name) & (s.partitions - 1) <> all (s.owned)
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

comment on function public.guard_ownership(text[]) is
  'Internal. Raises SC421 unless owns_coupon() is true for all p_coupons, before anything is read or written.';

revoke all on function public.guard_ownership(text[]) from public;
