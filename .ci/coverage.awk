# Reads a coverage profile of several test programs and prints, per package, how many of its statements any of them ran.
# Fails when a package ran less than 80 % of its own, or when one of the three is not there at all.

# scalable-coupon-system/api/body.go:18.60,21.2 3 1
NR > 1 {
    block = $1
    statements[block] = $2
    if ($3 > 0) ran[block] = 1
}

END {
    for (block in statements) {
        package = block
        sub(/^[^\/]*\//, "", package)
        sub(/\/[^\/]*$/, "", package)
        all[package] += statements[block]
        if (block in ran) covered[package] += statements[block]
    }
    split("api pgstore db", wanted)
    for (i = 1; i in wanted; i++) {
        package = wanted[i]
        percent = all[package] ? 100 * covered[package] / all[package] : 0
        printf "%-8s %5.1f %% of %4d statements\n", package, percent, all[package]
        if (percent < 80) {
            printf "%s is below 80 %%\n", package
            failed = 1
        }
    }
    exit failed
}
