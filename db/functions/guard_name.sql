-- Internal: raises an error that names the invalid argument. Only the owner may execute it.
create or replace function public.guard_name(p_argument text, p_value text)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if public.is_valid_name(p_value) then
    return;
  end if;

  if p_value is null then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = format('%s must not be null', p_argument);
  end if;

  raise exception using
    errcode = 'invalid_parameter_value',
    message = format('%s must have 1 to 255 characters that are not all white space', p_argument),
    detail = format('It has %s characters.', char_length(p_value));
end;
$$;

comment on function public.guard_name(text, text) is
  'Internal. Raises 22023 (invalid_parameter_value) naming p_argument, unless p_value is a valid name or user id.';

revoke all on function public.guard_name(text, text) from public;
