-- Internal: one row if the user has the coupon, else none. The only place that looks up a user's
-- claim, and the reason why it is quick whatever the planner knows of the tables (ADR 0010):
--
-- The user is selected as a range, in order. Only the unique index (coupon_name, user_id) has that
-- order, and callers disable sorting. With two equalities, the planner may choose the primary key,
-- and read all claims of the coupon. The limit keeps it from making a join of the lookup.
--
-- Names compare as bytes, whatever collation the arguments bring along.
--
-- It is plain SQL without options, so that the planner can inline it.
create or replace function coupond.find_claim(p_coupon text, p_user text)
returns setof boolean
language sql
stable
rows 1
as $$
  select true
  from coupond.claims
  where coupon_name = p_coupon collate "C"
    and user_id collate "C" between p_user and p_user
  order by user_id
  limit 1
$$;

comment on function coupond.find_claim(text, text) is
  'Internal. One row if p_user has p_coupon, else none: use it as exists (select from find_claim(…)).';
