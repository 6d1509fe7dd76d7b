-- The functions run with the owner's privileges, so no caller may change what a name in them means,
-- or how their statements are planned.
begin;
select plan(3);

select results_eq(
  $$
    select p.proname::text collate "default"
    from pg_proc as p
    where p.pronamespace = 'coupond'::regnamespace
      and not p.prosecdef
    order by 1
  $$,
  $$
    values ('check_name'), ('check_names'), ('check_shard'), ('check_shards'), ('find_claim'), ('is_valid_name'), ('owns_coupon'),
      ('session_problem')
  $$,
  'all functions are SECURITY DEFINER, except the internal ones and session_problem');
select is_empty(
  $$
    select p.proname
    from pg_proc as p
    where p.pronamespace = 'coupond'::regnamespace
      and p.prosecdef
      and not coalesce(p.proconfig @> array['search_path=pg_catalog, coupond, pg_temp', 'plan_cache_mode=force_generic_plan'], false)
  $$,
  'each SECURITY DEFINER function pins its search_path, temporary objects last, and generic plans');
select is_empty(
  $$
    select p.proname
    from pg_proc as p
    where p.pronamespace = 'coupond'::regnamespace
      and not p.prosecdef
      and p.proconfig is not null
  $$,
  'internal functions have the settings of the function that calls them; session_problem, those of the session');

select * from finish();
rollback;
