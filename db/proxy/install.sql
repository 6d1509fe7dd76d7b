{{- /* What stands on a proxy in place of db/migrations and db/functions: the same signatures, each handed on to the shard that owns the coupon. It keeps nothing. */ -}}
{{ template "roles.sql" . }}
{{ template "types.sql" . }}
{{ template "functions.sql" . }}
