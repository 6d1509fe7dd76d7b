-- The progress of each sale, for people and monitoring. It costs a few index probes per coupon,
-- however many claims there are: claim numbers have no gaps, so the first claim has number 1, the
-- last has amount - remaining_amount, and those between are in order of time. The lookups are
-- subqueries in the select list because the planner could turn joins into a scan of all claims.
create or replace view coupond.sale_progress as
select
  c.name,
  c.amount,
  c.remaining_amount,
  (
    select k.claimed_at
    from coupond.claims as k
    where k.coupon_name = c.name
      and k.claim_number = 1
  ) as first_claim_at,
  (
    select k.claimed_at
    from coupond.claims as k
    where k.coupon_name = c.name
      and k.claim_number = c.amount - c.remaining_amount
  ) as last_claim_at,
  (
    -- A search for the last claim that is older than ten seconds: back from the last claim in steps
    -- of 1, 2, 4, … until a claim is older (or no claim is left), then binary. At every step, claim
    -- number "older" is older than ten seconds and claim number "recent" is not.
    with recursive search (older, recent, step) as (
      select
        null::integer,
        c.amount - c.remaining_amount + 1,
        1
      union all
      select
        case when p.is_older then p.probed else s.older end,
        case when p.is_older then s.recent else p.probed end,
        -- Doubled, within the range of an integer. It is not used once an older claim is found.
        least(s.step, 1073741823) * 2
      from search as s
      cross join lateral (
        select
          n.probed,
          -- Everything before the first claim counts as older.
          coalesce((
            select k.claimed_at <= statement_timestamp() - interval '10 seconds'
            from coupond.claims as k
            where k.coupon_name = c.name
              and k.claim_number = n.probed
          ), true) as is_older
        from (
          select
            case
              when s.older is null then greatest(s.recent - s.step, 0)
              else s.older + (s.recent - s.older) / 2
            end as probed
        ) as n
        -- Keeps the planner from inlining is_older in both places that use it, and so from probing
        -- twice.
        offset 0
      ) as p
      where s.older is null
        or s.recent - s.older > 1
    )
    select round((c.amount - c.remaining_amount - max(s.older)) / 10.0, 1)
    from search as s
  ) as claims_per_second
from coupond.coupons as c;

comment on view coupond.sale_progress is
  'The progress of each sale: stock, first and last claim, and claims per second over the last ten seconds. '
  'Costs a few index probes per coupon; select one coupon by its name.';
