-- Internal: guard_name for an array, in one statement.
create or replace function public.guard_names(p_argument text, p_values text[])
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad record;
begin
  if p_values is null then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = format('%s must not be null', p_argument);
  end if;

  if array_ndims(p_values) > 1 then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = format('%s must be an array of one dimension', p_argument);
  end if;

  select e.value, e.ord
  into v_bad
  from unnest(p_values) with ordinality as e (value, ord)
  where public.is_valid_name(e.value) is not true
  order by e.ord
  limit 1;

  if found then
    perform public.guard_name(format('%s[%s]', p_argument, v_bad.ord), v_bad.value);
  end if;
end;
$$;

comment on function public.guard_names(text, text[]) is
  'Internal. Raises 22023 (invalid_parameter_value) naming p_argument and the index, unless every element is a valid name or user id.';

revoke all on function public.guard_names(text, text[]) from public;
