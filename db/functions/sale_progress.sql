-- How each sale goes, for people and monitoring. A handful of index probes for each coupon, however many claims there are: claims
-- are numbered without gaps, so the first has number 1, the last amount - remaining_amount, and those between are in the order of
-- time. Subqueries in the select list stay subqueries; said as joins, the planner could turn them into a scan of all claims.
create or replace view public.sale_progress as
select
  c.name,
  c.amount,
  c.remaining_amount,
  (
    select k.claimed_at
    from public.claims as k
    where k.coupon_name = c.name
      and k.claim_number = 1
  ) as first_claim_at,
  (
    select k.claimed_at
    from public.claims as k
    where k.coupon_name = c.name
      and k.claim_number = c.amount - c.remaining_amount
  ) as last_claim_at,
  (
    -- From the last claim back in steps of 1, 2, 4, … until one is older than ten seconds (or there is none before); then the
    -- interval in which the last such claim must be is halved until it is found. "older" is such a claim, "lately" one that is not.
    with recursive search (older, lately, step) as (
      select
        null::integer,
        c.amount - c.remaining_amount + 1,
        1
      union all
      select
        case when p.is_older then p.probed else s.older end,
        case when p.is_older then s.lately else p.probed end,
        -- Twice as far, as long as an integer holds it. It counts only until an older one is found.
        least(s.step, 1073741823) * 2
      from search as s
      cross join lateral (
        select
          n.probed,
          -- Before the first claim there is nothing but what is older.
          coalesce((
            select k.claimed_at <= statement_timestamp() - interval '10 seconds'
            from public.claims as k
            where k.coupon_name = c.name
              and k.claim_number = n.probed
          ), true) as is_older
        from (
          select
            case
              when s.older is null then greatest(s.lately - s.step, 0)
              else s.older + (s.lately - s.older) / 2
            end as probed
        ) as n
        -- Keeps the planner from moving is_older to both places where it stands, and so from probing twice.
        offset 0
      ) as p
      where s.older is null
        or s.lately - s.older > 1
    )
    select round((c.amount - c.remaining_amount - max(s.older)) / 10.0, 1)
    from search as s
  ) as claims_per_second
from public.coupons as c;

comment on view public.sale_progress is
  'How each sale goes: stock, the first and the last claim, and how many claims a second there were in the last ten seconds. Costs a few index probes a coupon; ask for one coupon by its name.';

revoke all on table public.sale_progress from public;
grant select on table public.sale_progress to coupon_monitor;
