-- Internal: raises an error that names the invalid argument. It is called by functions that pin
-- their search_path; to pin it once more would cost each claim as much as the check.
create or replace function coupond.check_name(p_argument text, p_value text)
returns void
language plpgsql
stable
as $$
begin
  if coupond.is_valid_name(p_value) then
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

comment on function coupond.check_name(text, text) is
  'Internal. Raises 22023 (invalid_parameter_value) naming p_argument, unless p_value is a valid name or user id.';
