-- The claim, for a crowd that wants one coupon: one look, one lock, one insert, one decrement, one commit.
create or replace function public.claim_coupons(p_users text[], p_coupon text)
returns public.claim_status[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- A session plans these statements once and keeps the plans. Made while the tables were small they would scan a table, and
-- go on scanning it when it holds millions of claims. For the same reason the look at a user's claim
--   is always a subquery with a limit: the planner can turn "exists" into a join that reads all claims of the coupon;
--   asks for the one user as a range, in order: only the unique index (coupon_name, user_id) has that order, and a sort is
--   switched off. Said as two equalities, the primary key can answer it, too, by reading all claims of the coupon, and seems
--   as good to a planner that knows only the statistics of a young system.
set enable_seqscan = off
set enable_sort = off
-- The joins are between arrays of one call, where a nested loop would be quadratic.
set enable_nestloop = off
-- What is switched off adds to a plan's cost, which must not be mistaken for work worth compiling.
set jit = off
as $$
declare
  v_statuses public.claim_status[];
  v_amount integer;
  v_remaining integer;
  v_claimed bigint;
begin
  perform public.guard_name('p_coupon', p_coupon);
  perform public.guard_names('p_users', p_users);
  if exists (select from public.shard) then
    perform public.guard_ownership(p_coupon);
  end if;

  -- 1. Look, without a lock. An unknown coupon or an empty stock is a true answer at this instant, and so is the claim
  --    that a user has already: stock never grows again, and a claim is never taken back.
  select c.remaining_amount
  into v_remaining
  from public.coupons as c
  where c.name = p_coupon;

  if not found then
    return array_fill('coupon_not_found'::public.claim_status, array[cardinality(p_users)]);
  end if;

  -- 2. Lock, if anybody may succeed. The lock is that of the update below, so that the foreign key's own lock on the
  --    coupon (key share) does not wait for it. Stock is read again: while we waited, others took from it.
  if v_remaining > 0 and exists (
    select
    from unnest(p_users) as u (id)
    where (
      select true
      from public.claims as k
      where k.coupon_name = p_coupon
        and k.user_id between u.id and u.id
      order by k.user_id
      limit 1
    ) is null
  ) then
    select c.amount, c.remaining_amount
    into v_amount, v_remaining
    from public.coupons as c
    where c.name = p_coupon
    for no key update;

    -- Nobody deletes a coupon, but for the owner, by hand, before its first claim.
    if not found then
      return array_fill('coupon_not_found'::public.claim_status, array[cardinality(p_users)]);
    end if;

    -- 3. Insert, for all of them at once, in the order of the crowd, while stock lasts. With the lock held nobody else claims
    --    this coupon: who has a claim now stays so, and the numbers are free. One insert a user, in a loop, takes 1.4 times as
    --    long for a crowd of 128: each starts the executor and parses the table's CHECKs anew.
    with asked as materialized (
      select
        u.id,
        u.place,
        (
          select true
          from public.claims as k
          where k.coupon_name = p_coupon
            and k.user_id between u.id and u.id
          order by k.user_id
          limit 1
        ) as has_claim
      from unnest(p_users) with ordinality as u (id, place)
    ),
    winners as materialized (
      -- One for each user, however often he asks, in the place of his first request.
      select a.id, min(a.place) as place
      from asked as a
      where a.has_claim is null
      group by a.id
      order by min(a.place)
      limit v_remaining
    ),
    granted as (
      insert into public.claims (coupon_name, claim_number, user_id)
      select p_coupon, v_amount - v_remaining + row_number() over (order by w.place), w.id
      from winners as w
    )
    select
      array_agg(
        case
          when a.has_claim then 'already_claimed'
          when a.place = w.place then 'claimed'
          when w.place is not null then 'already_claimed'
          else 'out_of_stock'
        end::public.claim_status
        order by a.place
      ),
      count(*) filter (where a.place = w.place)
    into v_statuses, v_claimed
    from asked as a
    left join winners as w
      on w.id = a.id;

    -- 4. Decrement, once a call: each update leaves a dead version of the row, and inside one transaction every later
    --    look has to walk them all.
    if v_claimed > 0 then
      update public.coupons as c
      set remaining_amount = c.remaining_amount - v_claimed
      where c.name = p_coupon;
    end if;

    return v_statuses;
  end if;

  -- 5. Nobody gets anything: whoever has it already hears so, and nothing is left for the others.
  return array(
    select
      case
        when (
          select true
          from public.claims as k
          where k.coupon_name = p_coupon
            and k.user_id between u.id and u.id
          order by k.user_id
          limit 1
        ) then 'already_claimed'
        else 'out_of_stock'
      end::public.claim_status
    from unnest(p_users) with ordinality as u (id, place)
    order by u.place
  );
end;
$$;

comment on function public.claim_coupons(text[], text) is
  'Claims one piece of p_coupon for each of p_users, in their order, in one transaction. Answers one status per user, in the same order; a repeated user gets already_claimed. Precedence: coupon_not_found, already_claimed, out_of_stock. Rejections take no lock.';

revoke all on function public.claim_coupons(text[], text) from public;
grant execute on function public.claim_coupons(text[], text) to coupon_service;
