-- The rule for names and user ids: 1 to 255 characters that are not all white space, as Unicode
-- defines it.
begin;
select plan(11);

select ok(coupond.is_valid_name('x'), 'one character is valid');
select ok(coupond.is_valid_name(repeat('x', 255)), '255 characters are valid');
select ok(coupond.is_valid_name(repeat(U&'\+01F3AB', 255)), 'characters are counted, not bytes');
select ok(not coupond.is_valid_name(''), 'an empty name is invalid');
select ok(not coupond.is_valid_name(repeat('x', 256)), '256 characters are invalid');
select ok(not coupond.is_valid_name(repeat(' ', 10)), 'blanks alone are invalid');
select ok(coupond.is_valid_name(' x '), 'blanks around a character are valid');
select ok(coupond.is_valid_name(U&'\200b'), 'a zero width space is valid: it is not White_Space in Unicode');
select ok(coupond.is_valid_name(E'\x01'), 'a control character is valid');
select is(coupond.is_valid_name(null), null, 'null for null');

select results_eq(
  $$
    select c
    from generate_series(1, 65535) as c
    where c not between 55296 and 57343
      and not coupond.is_valid_name(chr(c))
  $$,
  $$
    select c
    from unnest(array[
      9, 10, 11, 12, 13, 32, 133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199, 8200, 8201, 8202, 8232, 8233, 8239,
      8287, 12288]) as c
  $$,
  'white space is U+0009-000D, 0020, 0085, 00A0, 1680, 2000-200A, 2028, 2029, 202F, 205F and 3000 (PropList.txt)');

select * from finish();
rollback;
