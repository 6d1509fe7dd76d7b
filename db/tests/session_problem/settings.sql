-- session_problem names the first setting of the session that breaks a promise, and what to do.
begin;
select plan(20);

-- What PostgreSQL has by default, whatever this server has.
set session synchronous_commit = on;
set session client_encoding = UTF8;

select is(coupond.session_problem(), null, 'a session with PostgreSQL''s defaults');

-- What is returned with a setting of the session.
create function pg_temp.problem_with(p_setting text, p_value text) returns text language plpgsql as $$
declare
  v_before constant text := current_setting(p_setting);
  v_problem text;
begin
  perform set_config(p_setting, p_value, true);
  v_problem := coupond.session_problem();
  perform set_config(p_setting, v_before, true);
  return v_problem;
end
$$;

select is(pg_temp.problem_with('client_min_messages', level), null, 'messages: ' || level)
from unnest(array['debug1', 'notice', 'warning']) as level;
select is(
  pg_temp.problem_with('client_min_messages', 'error'),
  'client_min_messages is error: the warning that a claim has not reached the standby would be hidden; '
  'set client_min_messages = warning',
  'messages: error');

select is(pg_temp.problem_with('synchronous_commit', level), null, 'commit: ' || level)
from unnest(array['on', 'remote_apply', 'true', '1']) as level;
select is(
  pg_temp.problem_with('synchronous_commit', level),
  'synchronous_commit is ' || level || ': a claim could be lost in a crash; set synchronous_commit = on',
  'commit: ' || level)
from unnest(array['off', 'local', 'remote_write']) as level;

select matches(
  pg_temp.problem_with('client_encoding', 'LATIN1'),
  '^client_encoding is LATIN1: .*; set client_encoding = UTF8$', 'encoding: LATIN1');
select is(pg_temp.problem_with('client_encoding', 'unicode'), null, 'another name of UTF8');

select matches(
  pg_temp.problem_with('default_transaction_isolation', level),
  '^default_transaction_isolation is ' || level || ': .*40001', 'isolation: ' || level)
from unnest(array['repeatable read', 'serializable']) as level;
commit;

begin isolation level serializable;
select matches(coupond.session_problem(), '^transaction_isolation is serializable: ', 'the isolation of this transaction');
commit;
begin read only;
select matches(coupond.session_problem(), '^transaction_read_only is on: ', 'a read-only transaction');
commit;

begin;
set local role coupon_service;
select tap.is(coupond.session_problem(), null, 'coupon_service may execute it');
set local synchronous_commit = off;
select tap.matches(coupond.session_problem(), '^synchronous_commit is off: ', 'and gets its own settings');
reset role;

select * from finish();
rollback;
