-- The rule for names and user ids: 1 to 255 characters that are not all white space, as Unicode defines it.
begin;
select plan(11);

select ok(public.is_valid_name('x'), 'one character');
select ok(public.is_valid_name(repeat('x', 255)), '255 of them');
select ok(public.is_valid_name(repeat(U&'\+01F3AB', 255)), 'characters are counted, not bytes');
select ok(not public.is_valid_name(''), 'not none');
select ok(not public.is_valid_name(repeat('x', 256)), 'not 256');
select ok(not public.is_valid_name(repeat(' ', 10)), 'not blanks');
select ok(public.is_valid_name(' x '), 'blanks around are kept');
select ok(public.is_valid_name(U&'\200b'), 'a zero width space is a character: Unicode does not call it white space');
select ok(public.is_valid_name(E'\x01'), 'and so is a control character');
select is(public.is_valid_name(null), null, 'null for null');

select results_eq(
  $$
    select c
    from generate_series(1, 65535) as c
    where c not between 55296 and 57343
      and not public.is_valid_name(chr(c))
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
