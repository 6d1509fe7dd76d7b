-- The functions run with the owner's privileges, so no caller may change what a name in them means.
begin;
select plan(3);

select is_empty(
  $$
    select p.proname
    from pg_proc as p
    where p.pronamespace = 'public'::regnamespace
      and p.prosecdef
      and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
  $$,
  'each SECURITY DEFINER function pins its search_path, temporary objects last');
select results_eq(
  $$
    select p.proname::text collate "default"
    from pg_proc as p
    where p.pronamespace = 'public'::regnamespace
      and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
  $$,
  $$ values ('is_valid_name') $$,
  'except is_valid_name, so that it can be inlined: it runs with the search_path of the guards that call it');
select results_eq(
  $$
    select p.proname::text collate "default"
    from pg_proc as p
    where p.pronamespace = 'public'::regnamespace
      and not p.prosecdef
    order by 1
  $$,
  $$ values ('guard_name'), ('guard_names'), ('guard_ownership'), ('is_valid_name'), ('owns_coupon') $$,
  'internal functions are not SECURITY DEFINER');

select * from finish();
rollback;
