{{- /* The functions and the view, installed after the migrations on every deploy. A function comes after the ones it calls. */ -}}
{{ template "coupon_schema_version.sql" . }}
{{ template "is_valid_name.sql" . }}
{{ template "guard_name.sql" . }}
{{ template "guard_names.sql" . }}
{{ template "owns_coupon.sql" . }}
{{ template "guard_ownership.sql" . }}
{{ template "create_coupon.sql" . }}
{{ template "get_coupon.sql" . }}
{{ template "coupon_claimers.sql" . }}
{{ template "claim_coupons.sql" . }}
{{ template "claim_coupon.sql" . }}
{{ template "claim_batch.sql" . }}
{{ template "sale_progress.sql" . }}
