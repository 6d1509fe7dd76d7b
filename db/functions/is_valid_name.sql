-- Internal: the rule for names. It is plain SQL without options, so that the planner can inline it.
-- ascii() checks whether the first character is printable ASCII, which proves that nearly every
-- name is not blank without reading the rest. The list is Unicode's White_Space (PropList.txt):
-- under collation "C", \s and [[:space:]] match only ASCII white space.
create or replace function coupond.is_valid_name(p_value text)
returns boolean
language sql
immutable
parallel safe
as $$
  select
    char_length(p_value) between 1 and 255
    and (
      ascii(p_value) between 33 and 126
      or btrim(
        p_value,
        E'\u0009\u000a\u000b\u000c\u000d\u0020\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005'
        '\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
      ) <> '' collate "C"
    )
$$;

comment on function coupond.is_valid_name(text) is
  'Internal. Whether a coupon name or a user id has 1 to 255 characters that are not all white space; null for null.';
