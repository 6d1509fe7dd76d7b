-- Internal: check_name for an array, in one statement.
create or replace function coupond.check_names(p_argument text, p_values text[])
returns void
language plpgsql
stable
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

  select e.value, e.position
  into v_bad
  from unnest(p_values) with ordinality as e (value, position)
  where coupond.is_valid_name(e.value) is not true
  order by e.position
  limit 1;

  if found then
    perform coupond.check_name(format('%s[%s]', p_argument, v_bad.position), v_bad.value);
  end if;
end;
$$;

comment on function coupond.check_names(text, text[]) is
  'Internal. Raises 22023 (invalid_parameter_value) naming p_argument and the index, unless every element is a valid name or user id.';
