{{- /* Installed on a proxy instead of db/migrations and db/functions: functions with the same signatures that call the shard that owns the coupon. A proxy stores nothing. */ -}}
{{ template "roles.sql" . }}
{{ template "types.sql" . }}
{{ template "functions.sql" . }}
{{ template "privileges.sql" . }}
