reset role;
reset all;
{{- /*
All advisory locks, because the session may hold ours or tern's twice: if a time-out ends the wait
for a lock that was just granted, a rollback does not release it, and the repetition takes it again.
*/}}
do $$ begin perform pg_catalog.pg_advisory_unlock_all(); end; $$;
