package db_test

// The expected results are what PostgreSQL 15 and 17 return, which is the same, reviewed line by
// line against the guarantees of a claim. docs/transactions.md explains them.
var specs = []spec{
	{
		name:     "two users, stock of one, A commits",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin x commit", "B: begin x commit"},
		results: []result{
			{"read committed", `
				A:begin A:x=claimed A:commit B:begin B:x=out_of_stock B:commit | x:a
				A:begin A:x=claimed B:begin A:commit B:x=out_of_stock B:commit | x:a
				A:begin A:x=claimed B:begin B:x... A:commit B:x=out_of_stock B:commit | x:a
				A:begin B:begin A:x=claimed A:commit B:x=out_of_stock B:commit | x:a
				A:begin B:begin A:x=claimed B:x... A:commit B:x=out_of_stock B:commit | x:a
				A:begin B:begin B:x=claimed A:x... B:commit A:x=out_of_stock A:commit | x:b
				A:begin B:begin B:x=claimed B:commit A:x=out_of_stock A:commit | x:b
				B:begin A:begin A:x=claimed A:commit B:x=out_of_stock B:commit | x:a
				B:begin A:begin A:x=claimed B:x... A:commit B:x=out_of_stock B:commit | x:a
				B:begin A:begin B:x=claimed A:x... B:commit A:x=out_of_stock A:commit | x:b
				B:begin A:begin B:x=claimed B:commit A:x=out_of_stock A:commit | x:b
				B:begin B:x=claimed A:begin A:x... B:commit A:x=out_of_stock A:commit | x:b
				B:begin B:x=claimed A:begin B:commit A:x=out_of_stock A:commit | x:b
				B:begin B:x=claimed B:commit A:begin A:x=out_of_stock A:commit | x:b
			`},
			{"repeatable read, serializable", `
				A:begin A:x=claimed A:commit B:begin B:x=out_of_stock B:commit | x:a
				A:begin A:x=claimed B:begin A:commit B:x=out_of_stock B:commit | x:a
				A:begin A:x=claimed B:begin B:x... A:commit B:x=40001 B:commit=rolled_back | x:a
				A:begin B:begin A:x=claimed A:commit B:x=out_of_stock B:commit | x:a
				A:begin B:begin A:x=claimed B:x... A:commit B:x=40001 B:commit=rolled_back | x:a
				A:begin B:begin B:x=claimed A:x... B:commit A:x=40001 A:commit=rolled_back | x:b
				A:begin B:begin B:x=claimed B:commit A:x=out_of_stock A:commit | x:b
				B:begin A:begin A:x=claimed A:commit B:x=out_of_stock B:commit | x:a
				B:begin A:begin A:x=claimed B:x... A:commit B:x=40001 B:commit=rolled_back | x:a
				B:begin A:begin B:x=claimed A:x... B:commit A:x=40001 A:commit=rolled_back | x:b
				B:begin A:begin B:x=claimed B:commit A:x=out_of_stock A:commit | x:b
				B:begin B:x=claimed A:begin A:x... B:commit A:x=40001 A:commit=rolled_back | x:b
				B:begin B:x=claimed A:begin B:commit A:x=out_of_stock A:commit | x:b
				B:begin B:x=claimed B:commit A:begin A:x=out_of_stock A:commit | x:b
			`},
		},
	},
	{
		name:     "two users, stock of one, A rolls back",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin+x rollback", "B: begin+x commit"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:rollback B:begin+x=claimed B:commit | x:b
				A:begin+x=claimed B:begin+x... A:rollback B:begin+x=claimed B:commit | x:b
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=out_of_stock A:rollback | x:b
				B:begin+x=claimed B:commit A:begin+x=out_of_stock A:rollback | x:b
			`},
			{"repeatable read, serializable", `
				A:begin+x=claimed A:rollback B:begin+x=claimed B:commit | x:b
				A:begin+x=claimed B:begin+x... A:rollback B:begin+x=claimed B:commit | x:b
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=40001 A:rollback | x:b
				B:begin+x=claimed B:commit A:begin+x=out_of_stock A:rollback | x:b
			`},
		},
	},
	{
		name:     "one user in two sessions, A commits",
		coupons:  map[string]int{"x": 2},
		users:    map[string]string{"A": "u", "B": "u"},
		sessions: []string{"A: begin+x x commit", "B: begin+x commit"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:x=already_claimed A:commit B:begin+x=already_claimed B:commit | x:u
				A:begin+x=claimed A:x=already_claimed B:begin+x... A:commit B:begin+x=already_claimed B:commit | x:u
				A:begin+x=claimed B:begin+x... A:x=already_claimed A:commit B:begin+x=already_claimed B:commit | x:u
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=already_claimed A:x=already_claimed A:commit | x:u
				B:begin+x=claimed B:commit A:begin+x=already_claimed A:x=already_claimed A:commit | x:u
			`},
			{"repeatable read, serializable", `
				A:begin+x=claimed A:x=already_claimed A:commit B:begin+x=already_claimed B:commit | x:u
				A:begin+x=claimed A:x=already_claimed B:begin+x... A:commit B:begin+x=40001 B:commit=rolled_back | x:u
				A:begin+x=claimed B:begin+x... A:x=already_claimed A:commit B:begin+x=40001 B:commit=rolled_back | x:u
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=40001 A:x=25P02 A:commit=rolled_back | x:u
				B:begin+x=claimed B:commit A:begin+x=already_claimed A:x=already_claimed A:commit | x:u
			`},
		},
	},
	{
		name:     "one user in two sessions, stock of one, A commits",
		coupons:  map[string]int{"x": 1},
		users:    map[string]string{"A": "u", "B": "u"},
		sessions: []string{"A: begin+x x commit", "B: begin+x commit"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:x=already_claimed A:commit B:begin+x=already_claimed B:commit | x:u
				A:begin+x=claimed A:x=already_claimed B:begin+x... A:commit B:begin+x=already_claimed B:commit | x:u
				A:begin+x=claimed B:begin+x... A:x=already_claimed A:commit B:begin+x=already_claimed B:commit | x:u
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=already_claimed A:x=already_claimed A:commit | x:u
				B:begin+x=claimed B:commit A:begin+x=already_claimed A:x=already_claimed A:commit | x:u
			`},
			{"repeatable read, serializable", `
				A:begin+x=claimed A:x=already_claimed A:commit B:begin+x=already_claimed B:commit | x:u
				A:begin+x=claimed A:x=already_claimed B:begin+x... A:commit B:begin+x=40001 B:commit=rolled_back | x:u
				A:begin+x=claimed B:begin+x... A:x=already_claimed A:commit B:begin+x=40001 B:commit=rolled_back | x:u
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=40001 A:x=25P02 A:commit=rolled_back | x:u
				B:begin+x=claimed B:commit A:begin+x=already_claimed A:x=already_claimed A:commit | x:u
			`},
		},
	},
	{
		name:     "one user in two sessions, A rolls back",
		coupons:  map[string]int{"x": 2},
		users:    map[string]string{"A": "u", "B": "u"},
		sessions: []string{"A: begin+x rollback", "B: begin+x commit"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:rollback B:begin+x=claimed B:commit | x:u
				A:begin+x=claimed B:begin+x... A:rollback B:begin+x=claimed B:commit | x:u
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=already_claimed A:rollback | x:u
				B:begin+x=claimed B:commit A:begin+x=already_claimed A:rollback | x:u
			`},
			{"repeatable read, serializable", `
				A:begin+x=claimed A:rollback B:begin+x=claimed B:commit | x:u
				A:begin+x=claimed B:begin+x... A:rollback B:begin+x=claimed B:commit | x:u
				B:begin+x=claimed A:begin+x... B:commit A:begin+x=40001 A:rollback | x:u
				B:begin+x=claimed B:commit A:begin+x=already_claimed A:rollback | x:u
			`},
		},
	},
	{
		name:     "two coupons in opposite orders",
		coupons:  map[string]int{"x": 2, "y": 2},
		sessions: []string{"A: begin+x y commit", "B: begin+y x commit"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:y=claimed A:commit B:begin+y=claimed B:x=claimed B:commit | x:a,b y:a,b
				A:begin+x=claimed A:y=claimed B:begin+y... A:commit B:begin+y=claimed B:x=claimed B:commit | x:a,b y:a,b
				A:begin+x=claimed B:begin+y=claimed A:y... B:x=40P01 A:y=claimed A:commit B:commit=rolled_back | x:a y:a
				A:begin+x=claimed B:begin+y=claimed A:y... B:x=40P01 A:y=claimed B:commit=rolled_back A:commit | x:a y:a
				A:begin+x=claimed B:begin+y=claimed B:x... A:y=40P01 B:x=claimed A:commit=rolled_back B:commit | x:b y:b
				A:begin+x=claimed B:begin+y=claimed B:x... A:y=40P01 B:x=claimed B:commit A:commit=rolled_back | x:b y:b
				B:begin+y=claimed A:begin+x=claimed A:y... B:x=40P01 A:y=claimed A:commit B:commit=rolled_back | x:a y:a
				B:begin+y=claimed A:begin+x=claimed A:y... B:x=40P01 A:y=claimed B:commit=rolled_back A:commit | x:a y:a
				B:begin+y=claimed A:begin+x=claimed B:x... A:y=40P01 B:x=claimed A:commit=rolled_back B:commit | x:b y:b
				B:begin+y=claimed A:begin+x=claimed B:x... A:y=40P01 B:x=claimed B:commit A:commit=rolled_back | x:b y:b
				B:begin+y=claimed B:x=claimed A:begin+x... B:commit A:begin+x=claimed A:y=claimed A:commit | x:b,a y:b,a
				B:begin+y=claimed B:x=claimed B:commit A:begin+x=claimed A:y=claimed A:commit | x:b,a y:b,a
			`},
			{"repeatable read, serializable", `
				A:begin+x=claimed A:y=claimed A:commit B:begin+y=claimed B:x=claimed B:commit | x:a,b y:a,b
				A:begin+x=claimed A:y=claimed B:begin+y... A:commit B:begin+y=40001 B:x=25P02 B:commit=rolled_back | x:a y:a
				A:begin+x=claimed B:begin+y=claimed A:y... B:x=40P01 A:y=claimed A:commit B:commit=rolled_back | x:a y:a
				A:begin+x=claimed B:begin+y=claimed A:y... B:x=40P01 A:y=claimed B:commit=rolled_back A:commit | x:a y:a
				A:begin+x=claimed B:begin+y=claimed B:x... A:y=40P01 B:x=claimed A:commit=rolled_back B:commit | x:b y:b
				A:begin+x=claimed B:begin+y=claimed B:x... A:y=40P01 B:x=claimed B:commit A:commit=rolled_back | x:b y:b
				B:begin+y=claimed A:begin+x=claimed A:y... B:x=40P01 A:y=claimed A:commit B:commit=rolled_back | x:a y:a
				B:begin+y=claimed A:begin+x=claimed A:y... B:x=40P01 A:y=claimed B:commit=rolled_back A:commit | x:a y:a
				B:begin+y=claimed A:begin+x=claimed B:x... A:y=40P01 B:x=claimed A:commit=rolled_back B:commit | x:b y:b
				B:begin+y=claimed A:begin+x=claimed B:x... A:y=40P01 B:x=claimed B:commit A:commit=rolled_back | x:b y:b
				B:begin+y=claimed B:x=claimed A:begin+x... B:commit A:begin+x=40001 A:y=25P02 A:commit=rolled_back | x:b y:b
				B:begin+y=claimed B:x=claimed B:commit A:begin+x=claimed A:y=claimed A:commit | x:b,a y:b,a
			`},
		},
	},
	{
		name:     "two coupons in the same order",
		coupons:  map[string]int{"x": 1, "y": 2},
		sessions: []string{"A: begin+x y commit", "B: begin+x y commit"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:y=claimed A:commit B:begin+x=out_of_stock B:y=claimed B:commit | x:a y:a,b
				A:begin+x=claimed A:y=claimed B:begin+x... A:commit B:begin+x=out_of_stock B:y=claimed B:commit | x:a y:a,b
				A:begin+x=claimed B:begin+x... A:y=claimed A:commit B:begin+x=out_of_stock B:y=claimed B:commit | x:a y:a,b
				B:begin+x=claimed A:begin+x... B:y=claimed B:commit A:begin+x=out_of_stock A:y=claimed A:commit | x:b y:b,a
				B:begin+x=claimed B:y=claimed A:begin+x... B:commit A:begin+x=out_of_stock A:y=claimed A:commit | x:b y:b,a
				B:begin+x=claimed B:y=claimed B:commit A:begin+x=out_of_stock A:y=claimed A:commit | x:b y:b,a
			`},
			{"repeatable read, serializable", `
				A:begin+x=claimed A:y=claimed A:commit B:begin+x=out_of_stock B:y=claimed B:commit | x:a y:a,b
				A:begin+x=claimed A:y=claimed B:begin+x... A:commit B:begin+x=40001 B:y=25P02 B:commit=rolled_back | x:a y:a
				A:begin+x=claimed B:begin+x... A:y=claimed A:commit B:begin+x=40001 B:y=25P02 B:commit=rolled_back | x:a y:a
				B:begin+x=claimed A:begin+x... B:y=claimed B:commit A:begin+x=40001 A:y=25P02 A:commit=rolled_back | x:b y:b
				B:begin+x=claimed B:y=claimed A:begin+x... B:commit A:begin+x=40001 A:y=25P02 A:commit=rolled_back | x:b y:b
				B:begin+x=claimed B:y=claimed B:commit A:begin+x=out_of_stock A:y=claimed A:commit | x:b y:b,a
			`},
		},
	},
	{
		name:     "read before claim",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin ?x x ?x commit", "B: x"},
		results: []result{
			{"read committed", `
				A:begin A:?x=2 A:x=claimed A:?x=1 A:commit B:x=claimed | x:a,b
				A:begin A:?x=2 A:x=claimed A:?x=1 B:x... A:commit B:x=claimed | x:a,b
				A:begin A:?x=2 A:x=claimed B:x... A:?x=1 A:commit B:x=claimed | x:a,b
				A:begin A:?x=2 B:x=claimed A:x=claimed A:?x=0 A:commit | x:b,a
				A:begin B:x=claimed A:?x=1 A:x=claimed A:?x=0 A:commit | x:b,a
				B:x=claimed A:begin A:?x=1 A:x=claimed A:?x=0 A:commit | x:b,a
			`},
			{"repeatable read, serializable", `
				A:begin A:?x=2 A:x=claimed A:?x=1 A:commit B:x=claimed | x:a,b
				A:begin A:?x=2 A:x=claimed A:?x=1 B:x... A:commit B:x=claimed | x:a,b
				A:begin A:?x=2 A:x=claimed B:x... A:?x=1 A:commit B:x=claimed | x:a,b
				A:begin A:?x=2 B:x=claimed A:x=40001 A:?x=25P02 A:commit=rolled_back | x:b
				A:begin B:x=claimed A:?x=1 A:x=claimed A:?x=0 A:commit | x:b,a
				B:x=claimed A:begin A:?x=1 A:x=claimed A:?x=0 A:commit | x:b,a
			`},
		},
	},
	{
		name:     "read one coupon, claim the other",
		coupons:  map[string]int{"x": 2, "y": 2},
		sessions: []string{"A: begin+?y x commit", "B: begin+?x y commit"},
		results: []result{
			{"read committed, repeatable read", `
				A:begin+?y=2 A:x=claimed A:commit B:begin+?x=1 B:y=claimed B:commit | x:a y:b
				A:begin+?y=2 A:x=claimed B:begin+?x=2 A:commit B:y=claimed B:commit | x:a y:b
				A:begin+?y=2 A:x=claimed B:begin+?x=2 B:y=claimed A:commit B:commit | x:a y:b
				A:begin+?y=2 A:x=claimed B:begin+?x=2 B:y=claimed B:commit A:commit | x:a y:b
				A:begin+?y=2 B:begin+?x=2 A:x=claimed A:commit B:y=claimed B:commit | x:a y:b
				A:begin+?y=2 B:begin+?x=2 A:x=claimed B:y=claimed A:commit B:commit | x:a y:b
				A:begin+?y=2 B:begin+?x=2 A:x=claimed B:y=claimed B:commit A:commit | x:a y:b
				A:begin+?y=2 B:begin+?x=2 B:y=claimed A:x=claimed A:commit B:commit | x:a y:b
				A:begin+?y=2 B:begin+?x=2 B:y=claimed A:x=claimed B:commit A:commit | x:a y:b
				A:begin+?y=2 B:begin+?x=2 B:y=claimed B:commit A:x=claimed A:commit | x:a y:b
				B:begin+?x=2 A:begin+?y=2 A:x=claimed A:commit B:y=claimed B:commit | x:a y:b
				B:begin+?x=2 A:begin+?y=2 A:x=claimed B:y=claimed A:commit B:commit | x:a y:b
				B:begin+?x=2 A:begin+?y=2 A:x=claimed B:y=claimed B:commit A:commit | x:a y:b
				B:begin+?x=2 A:begin+?y=2 B:y=claimed A:x=claimed A:commit B:commit | x:a y:b
				B:begin+?x=2 A:begin+?y=2 B:y=claimed A:x=claimed B:commit A:commit | x:a y:b
				B:begin+?x=2 A:begin+?y=2 B:y=claimed B:commit A:x=claimed A:commit | x:a y:b
				B:begin+?x=2 B:y=claimed A:begin+?y=2 A:x=claimed A:commit B:commit | x:a y:b
				B:begin+?x=2 B:y=claimed A:begin+?y=2 A:x=claimed B:commit A:commit | x:a y:b
				B:begin+?x=2 B:y=claimed A:begin+?y=2 B:commit A:x=claimed A:commit | x:a y:b
				B:begin+?x=2 B:y=claimed B:commit A:begin+?y=1 A:x=claimed A:commit | x:a y:b
			`},
			{"serializable", `
				A:begin+?y=2 A:x=claimed A:commit B:begin+?x=1 B:y=claimed B:commit | x:a y:b
				A:begin+?y=2 A:x=claimed B:begin+?x=2 A:commit B:y=40001 B:commit=rolled_back | x:a y:
				A:begin+?y=2 A:x=claimed B:begin+?x=2 B:y=claimed A:commit B:commit=40001 | x:a y:
				A:begin+?y=2 A:x=claimed B:begin+?x=2 B:y=claimed B:commit A:commit=40001 | x: y:b
				A:begin+?y=2 B:begin+?x=2 A:x=claimed A:commit B:y=40001 B:commit=rolled_back | x:a y:
				A:begin+?y=2 B:begin+?x=2 A:x=claimed B:y=claimed A:commit B:commit=40001 | x:a y:
				A:begin+?y=2 B:begin+?x=2 A:x=claimed B:y=claimed B:commit A:commit=40001 | x: y:b
				A:begin+?y=2 B:begin+?x=2 B:y=claimed A:x=claimed A:commit B:commit=40001 | x:a y:
				A:begin+?y=2 B:begin+?x=2 B:y=claimed A:x=claimed B:commit A:commit=40001 | x: y:b
				A:begin+?y=2 B:begin+?x=2 B:y=claimed B:commit A:x=40001 A:commit=rolled_back | x: y:b
				B:begin+?x=2 A:begin+?y=2 A:x=claimed A:commit B:y=40001 B:commit=rolled_back | x:a y:
				B:begin+?x=2 A:begin+?y=2 A:x=claimed B:y=claimed A:commit B:commit=40001 | x:a y:
				B:begin+?x=2 A:begin+?y=2 A:x=claimed B:y=claimed B:commit A:commit=40001 | x: y:b
				B:begin+?x=2 A:begin+?y=2 B:y=claimed A:x=claimed A:commit B:commit=40001 | x:a y:
				B:begin+?x=2 A:begin+?y=2 B:y=claimed A:x=claimed B:commit A:commit=40001 | x: y:b
				B:begin+?x=2 A:begin+?y=2 B:y=claimed B:commit A:x=40001 A:commit=rolled_back | x: y:b
				B:begin+?x=2 B:y=claimed A:begin+?y=2 A:x=claimed A:commit B:commit=40001 | x:a y:
				B:begin+?x=2 B:y=claimed A:begin+?y=2 A:x=claimed B:commit A:commit=40001 | x: y:b
				B:begin+?x=2 B:y=claimed A:begin+?y=2 B:commit A:x=40001 A:commit=rolled_back | x: y:b
				B:begin+?x=2 B:y=claimed B:commit A:begin+?y=1 A:x=claimed A:commit | x:a y:b
			`},
		},
	},
	{
		name:     "different coupons at the same time",
		coupons:  map[string]int{"x": 2, "y": 2},
		sessions: []string{"A: begin+x commit", "B: begin+y commit"},
		results: []result{
			{"read committed, repeatable read, serializable", `
				A:begin+x=claimed A:commit B:begin+y=claimed B:commit | x:a y:b
				A:begin+x=claimed B:begin+y=claimed A:commit B:commit | x:a y:b
				A:begin+x=claimed B:begin+y=claimed B:commit A:commit | x:a y:b
				B:begin+y=claimed A:begin+x=claimed A:commit B:commit | x:a y:b
				B:begin+y=claimed A:begin+x=claimed B:commit A:commit | x:a y:b
				B:begin+y=claimed B:commit A:begin+x=claimed A:commit | x:a y:b
			`},
		},
	},
	{
		name:     "three sessions, stock of two",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+x commit", "B: x", "C: x"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:commit B:x=claimed C:x=out_of_stock | x:a,b
				A:begin+x=claimed A:commit C:x=claimed B:x=out_of_stock | x:a,c
				A:begin+x=claimed B:x... A:commit B:x=claimed C:x=out_of_stock | x:a,b
				A:begin+x=claimed B:x... C:x... A:commit B:x=claimed C:x=out_of_stock | x:a,b
				or A:begin+x=claimed B:x... C:x... A:commit B:x=out_of_stock C:x=claimed | x:a,c
				A:begin+x=claimed C:x... A:commit C:x=claimed B:x=out_of_stock | x:a,c
				A:begin+x=claimed C:x... B:x... A:commit C:x=claimed B:x=out_of_stock | x:a,c
				or A:begin+x=claimed C:x... B:x... A:commit C:x=out_of_stock B:x=claimed | x:a,b
				B:x=claimed A:begin+x=claimed A:commit C:x=out_of_stock | x:b,a
				B:x=claimed A:begin+x=claimed C:x... A:commit C:x=out_of_stock | x:b,a
				B:x=claimed C:x=claimed A:begin+x=out_of_stock A:commit | x:b,c
				C:x=claimed A:begin+x=claimed A:commit B:x=out_of_stock | x:c,a
				C:x=claimed A:begin+x=claimed B:x... A:commit B:x=out_of_stock | x:c,a
				C:x=claimed B:x=claimed A:begin+x=out_of_stock A:commit | x:c,b
			`},
		},
	},
	{
		name:     "a batch waits for x, y is not locked",
		coupons:  map[string]int{"x": 2, "y": 2},
		sessions: []string{"A: begin+x commit", "B: x,y", "C: y"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:commit B:x,y=claimed,claimed C:y=claimed | x:a,b y:b,c
				A:begin+x=claimed A:commit C:y=claimed B:x,y=claimed,claimed | x:a,b y:c,b
				A:begin+x=claimed B:x,y... A:commit B:x,y=claimed,claimed C:y=claimed | x:a,b y:b,c
				A:begin+x=claimed B:x,y... C:y=claimed A:commit B:x,y=claimed,claimed | x:a,b y:c,b
				A:begin+x=claimed C:y=claimed A:commit B:x,y=claimed,claimed | x:a,b y:c,b
				A:begin+x=claimed C:y=claimed B:x,y... A:commit B:x,y=claimed,claimed | x:a,b y:c,b
				B:x,y=claimed,claimed A:begin+x=claimed A:commit C:y=claimed | x:b,a y:b,c
				B:x,y=claimed,claimed A:begin+x=claimed C:y=claimed A:commit | x:b,a y:b,c
				B:x,y=claimed,claimed C:y=claimed A:begin+x=claimed A:commit | x:b,a y:b,c
				C:y=claimed A:begin+x=claimed A:commit B:x,y=claimed,claimed | x:a,b y:c,b
				C:y=claimed A:begin+x=claimed B:x,y... A:commit B:x,y=claimed,claimed | x:a,b y:c,b
				C:y=claimed B:x,y=claimed,claimed A:begin+x=claimed A:commit | x:b,a y:c,b
			`},
		},
	},
	{
		name:     "a batch waits for y and holds x",
		coupons:  map[string]int{"x": 2, "y": 2},
		sessions: []string{"A: begin+y rollback", "B: x,y", "C: x"},
		results: []result{
			{"read committed", `
				A:begin+y=claimed A:rollback B:x,y=claimed,claimed C:x=claimed | x:b,c y:b
				A:begin+y=claimed A:rollback C:x=claimed B:x,y=claimed,claimed | x:c,b y:b
				A:begin+y=claimed B:x,y... A:rollback B:x,y=claimed,claimed C:x=claimed | x:b,c y:b
				A:begin+y=claimed B:x,y... C:x... A:rollback B:x,y=claimed,claimed C:x=claimed | x:b,c y:b
				A:begin+y=claimed C:x=claimed A:rollback B:x,y=claimed,claimed | x:c,b y:b
				A:begin+y=claimed C:x=claimed B:x,y... A:rollback B:x,y=claimed,claimed | x:c,b y:b
				B:x,y=claimed,claimed A:begin+y=claimed A:rollback C:x=claimed | x:b,c y:b
				B:x,y=claimed,claimed A:begin+y=claimed C:x=claimed A:rollback | x:b,c y:b
				B:x,y=claimed,claimed C:x=claimed A:begin+y=claimed A:rollback | x:b,c y:b
				C:x=claimed A:begin+y=claimed A:rollback B:x,y=claimed,claimed | x:c,b y:b
				C:x=claimed A:begin+y=claimed B:x,y... A:rollback B:x,y=claimed,claimed | x:c,b y:b
				C:x=claimed B:x,y=claimed,claimed A:begin+y=claimed A:rollback | x:c,b y:b
			`},
		},
	},
	{
		name:     "a coupon is created while a batch waits",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+x commit", "B: x,z", "C: create-z"},
		results: []result{
			{"read committed", `
				A:begin+x=claimed A:commit B:x,z=claimed,coupon_not_found C:create-z=created | x:a,b z:
				A:begin+x=claimed A:commit C:create-z=created B:x,z=claimed,claimed | x:a,b z:b
				A:begin+x=claimed B:x,z... A:commit B:x,z=claimed,coupon_not_found C:create-z=created | x:a,b z:
				A:begin+x=claimed B:x,z... C:create-z=created A:commit B:x,z=claimed,coupon_not_found | x:a,b z:
				A:begin+x=claimed C:create-z=created A:commit B:x,z=claimed,claimed | x:a,b z:b
				A:begin+x=claimed C:create-z=created B:x,z... A:commit B:x,z=claimed,claimed | x:a,b z:b
				B:x,z=claimed,coupon_not_found A:begin+x=claimed A:commit C:create-z=created | x:b,a z:
				B:x,z=claimed,coupon_not_found A:begin+x=claimed C:create-z=created A:commit | x:b,a z:
				B:x,z=claimed,coupon_not_found C:create-z=created A:begin+x=claimed A:commit | x:b,a z:
				C:create-z=created A:begin+x=claimed A:commit B:x,z=claimed,claimed | x:a,b z:b
				C:create-z=created A:begin+x=claimed B:x,z... A:commit B:x,z=claimed,claimed | x:a,b z:b
				C:create-z=created B:x,z=claimed,claimed A:begin+x=claimed A:commit | x:b,a z:b
			`},
		},
	},
	{
		name:     "rollback to savepoint",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin+savepoint+x back commit", "B: x"},
		results: []result{
			{"read committed", `
				A:begin+savepoint+x=claimed A:back A:commit B:x=claimed | x:b
				A:begin+savepoint+x=claimed A:back B:x=claimed A:commit | x:b
				A:begin+savepoint+x=claimed B:x... A:back B:x=claimed A:commit | x:b
				B:x=claimed A:begin+savepoint+x=out_of_stock A:back A:commit | x:b
			`},
		},
	},
	{
		name:     "a coupon is created in a transaction, A commits",
		coupons:  map[string]int{},
		sessions: []string{"A: begin+create-z commit", "B: z", "C: create-z"},
		results: []result{
			{"read committed", `
				A:begin+create-z=created A:commit B:z=claimed C:create-z=coupon_exists | z:b
				A:begin+create-z=created A:commit C:create-z=coupon_exists B:z=claimed | z:b
				A:begin+create-z=created B:z=coupon_not_found A:commit C:create-z=coupon_exists | z:
				A:begin+create-z=created B:z=coupon_not_found C:create-z... A:commit C:create-z=coupon_exists | z:
				A:begin+create-z=created C:create-z... A:commit C:create-z=coupon_exists B:z=claimed | z:b
				A:begin+create-z=created C:create-z... B:z=coupon_not_found A:commit C:create-z=coupon_exists | z:
				B:z=coupon_not_found A:begin+create-z=created A:commit C:create-z=coupon_exists | z:
				B:z=coupon_not_found A:begin+create-z=created C:create-z... A:commit C:create-z=coupon_exists | z:
				B:z=coupon_not_found C:create-z=created A:begin+create-z=coupon_exists A:commit | z:
				C:create-z=created A:begin+create-z=coupon_exists A:commit B:z=claimed | z:b
				C:create-z=created A:begin+create-z=coupon_exists B:z=claimed A:commit | z:b
				C:create-z=created B:z=claimed A:begin+create-z=coupon_exists A:commit | z:b
			`},
		},
	},
	{
		name:     "a coupon is created in a transaction, A rolls back",
		coupons:  map[string]int{},
		sessions: []string{"A: begin+create-z rollback", "B: z", "C: create-z"},
		results: []result{
			{"read committed", `
				A:begin+create-z=created A:rollback B:z=coupon_not_found C:create-z=created | z:
				A:begin+create-z=created A:rollback C:create-z=created B:z=claimed | z:b
				A:begin+create-z=created B:z=coupon_not_found A:rollback C:create-z=created | z:
				A:begin+create-z=created B:z=coupon_not_found C:create-z... A:rollback C:create-z=created | z:
				A:begin+create-z=created C:create-z... A:rollback C:create-z=created B:z=claimed | z:b
				A:begin+create-z=created C:create-z... B:z=coupon_not_found A:rollback C:create-z=created | z:
				B:z=coupon_not_found A:begin+create-z=created A:rollback C:create-z=created | z:
				B:z=coupon_not_found A:begin+create-z=created C:create-z... A:rollback C:create-z=created | z:
				B:z=coupon_not_found C:create-z=created A:begin+create-z=coupon_exists A:rollback | z:
				C:create-z=created A:begin+create-z=coupon_exists A:rollback B:z=claimed | z:b
				C:create-z=created A:begin+create-z=coupon_exists B:z=claimed A:rollback | z:b
				C:create-z=created B:z=claimed A:begin+create-z=coupon_exists A:rollback | z:b
			`},
		},
	},
	{
		name:     "a coupon is created twice",
		coupons:  map[string]int{},
		sessions: []string{"A: begin+create-z commit", "B: begin+create-z commit"},
		results: []result{
			{"read committed", `
				A:begin+create-z=created A:commit B:begin+create-z=coupon_exists B:commit | z:
				A:begin+create-z=created B:begin+create-z... A:commit B:begin+create-z=coupon_exists B:commit | z:
				B:begin+create-z=created A:begin+create-z... B:commit A:begin+create-z=coupon_exists A:commit | z:
				B:begin+create-z=created B:commit A:begin+create-z=coupon_exists A:commit | z:
			`},
			{"repeatable read, serializable", `
				A:begin+create-z=created A:commit B:begin+create-z=coupon_exists B:commit | z:
				A:begin+create-z=created B:begin+create-z... A:commit B:begin+create-z=40001 B:commit=rolled_back | z:
				B:begin+create-z=created A:begin+create-z... B:commit A:begin+create-z=40001 A:commit=rolled_back | z:
				B:begin+create-z=created B:commit A:begin+create-z=coupon_exists A:commit | z:
			`},
		},
	},
	{
		name:     "a coupon is deleted by hand, A commits",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin+delete-x commit", "B: x", "C: x,x"},
		results: []result{
			{"read committed", `
				A:begin+delete-x A:commit B:x=coupon_not_found C:x,x=coupon_not_found,coupon_not_found |
				A:begin+delete-x A:commit C:x,x=coupon_not_found,coupon_not_found B:x=coupon_not_found |
				A:begin+delete-x B:x... A:commit B:x=coupon_not_found C:x,x=coupon_not_found,coupon_not_found |
				A:begin+delete-x B:x... C:x,x... A:commit B:x=coupon_not_found C:x,x=coupon_not_found,coupon_not_found |
				A:begin+delete-x C:x,x... A:commit C:x,x=coupon_not_found,coupon_not_found B:x=coupon_not_found |
				A:begin+delete-x C:x,x... B:x... A:commit C:x,x=coupon_not_found,coupon_not_found B:x=coupon_not_found |
				B:x=claimed A:begin+delete-x=23503 A:commit=rolled_back C:x,x=out_of_stock,out_of_stock | x:b
				B:x=claimed A:begin+delete-x=23503 C:x,x=out_of_stock,out_of_stock A:commit=rolled_back | x:b
				B:x=claimed C:x,x=out_of_stock,out_of_stock A:begin+delete-x=23503 A:commit=rolled_back | x:b
				C:x,x=claimed,already_claimed A:begin+delete-x=23503 A:commit=rolled_back B:x=out_of_stock | x:c
				C:x,x=claimed,already_claimed A:begin+delete-x=23503 B:x=out_of_stock A:commit=rolled_back | x:c
				C:x,x=claimed,already_claimed B:x=out_of_stock A:begin+delete-x=23503 A:commit=rolled_back | x:c
			`},
		},
	},
	{
		name:     "a coupon is deleted by hand, A rolls back",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin+delete-x rollback", "B: x"},
		results: []result{
			{"read committed", `
				A:begin+delete-x A:rollback B:x=claimed | x:b
				A:begin+delete-x B:x... A:rollback B:x=claimed | x:b
				B:x=claimed A:begin+delete-x=23503 A:rollback | x:b
			`},
		},
	},
	{
		name:     "a claim is inserted by hand while its coupon is deleted",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+insert-x-1 commit", "B: begin+delete-x commit"},
		byHand:   true,
		results: []result{
			{"read committed", `
				A:begin+insert-x-1 A:commit B:begin+delete-x=23503 B:commit=rolled_back | x:a
				A:begin+insert-x-1 B:begin+delete-x... A:commit B:begin+delete-x=23503 B:commit=rolled_back | x:a
				B:begin+delete-x A:begin+insert-x-1... B:commit A:begin+insert-x-1=23503 A:commit=rolled_back |
				B:begin+delete-x B:commit A:begin+insert-x-1=23503 A:commit=rolled_back |
			`},
			{"repeatable read, serializable", `
				A:begin+insert-x-1 A:commit B:begin+delete-x=0A000 B:commit=rolled_back | x:a
				A:begin+insert-x-1 B:begin+delete-x... A:commit B:begin+delete-x=0A000 B:commit=rolled_back | x:a
				B:begin+delete-x=0A000 A:begin+insert-x-1 A:commit B:commit=rolled_back | x:a
				B:begin+delete-x=0A000 A:begin+insert-x-1 B:commit=rolled_back A:commit | x:a
				B:begin+delete-x=0A000 B:commit=rolled_back A:begin+insert-x-1 A:commit | x:a
			`},
		},
	},
	{
		name:     "a claim is inserted by hand, its coupon is deleted after the snapshot",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+?x insert-x-1 commit", "B: delete-x"},
		byHand:   true,
		results: []result{
			{"read committed", `
				A:begin+?x=2 A:insert-x-1 A:commit B:delete-x=23503 | x:a
				A:begin+?x=2 A:insert-x-1 B:delete-x... A:commit B:delete-x=23503 | x:a
				A:begin+?x=2 B:delete-x A:insert-x-1=23503 A:commit=rolled_back |
				B:delete-x A:begin+?x A:insert-x-1=23503 A:commit=rolled_back |
			`},
			{"repeatable read, serializable", `
				A:begin+?x=2 A:insert-x-1 A:commit B:delete-x=23503 | x:a
				A:begin+?x=2 A:insert-x-1 B:delete-x... A:commit B:delete-x=23503 | x:a
				A:begin+?x=2 B:delete-x A:insert-x-1=40001 A:commit=rolled_back |
				B:delete-x A:begin+?x A:insert-x-1=23503 A:commit=rolled_back |
			`},
		},
	},
	{
		name:     "a claim is inserted by hand, its coupon is renamed after the snapshot",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+?x insert-x-1 commit", "B: rename-x"},
		byHand:   true,
		results: []result{
			{"read committed", `
				A:begin+?x=2 A:insert-x-1 A:commit B:rename-x=23503 | x:a
				A:begin+?x=2 A:insert-x-1 B:rename-x... A:commit B:rename-x=23503 | x:a
				A:begin+?x=2 B:rename-x A:insert-x-1=23503 A:commit=rolled_back | renamed:
				B:rename-x A:begin+?x A:insert-x-1=23503 A:commit=rolled_back | renamed:
			`},
			{"repeatable read, serializable", `
				A:begin+?x=2 A:insert-x-1 A:commit B:rename-x=23503 | x:a
				A:begin+?x=2 A:insert-x-1 B:rename-x... A:commit B:rename-x=23503 | x:a
				A:begin+?x=2 B:rename-x A:insert-x-1=40001 A:commit=rolled_back | renamed:
				B:rename-x A:begin+?x A:insert-x-1=23503 A:commit=rolled_back | renamed:
			`},
		},
	},
	{
		name:     "a claim is inserted by hand, its coupon is lowered in its amount after the snapshot",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+?x insert-x-2 commit", "B: lower-x"},
		byHand:   true,
		results: []result{
			{"read committed", `
				A:begin+?x=2 A:insert-x-2 A:commit B:lower-x=23514 | x:a
				A:begin+?x=2 A:insert-x-2 B:lower-x... A:commit B:lower-x=23514 | x:a
				A:begin+?x=2 B:lower-x A:insert-x-2=23503 A:commit=rolled_back | x:
				B:lower-x A:begin+?x=1 A:insert-x-2=23503 A:commit=rolled_back | x:
			`},
			{"repeatable read, serializable", `
				A:begin+?x=2 A:insert-x-2 A:commit B:lower-x=23514 | x:a
				A:begin+?x=2 A:insert-x-2 B:lower-x... A:commit B:lower-x=23514 | x:a
				A:begin+?x=2 B:lower-x A:insert-x-2=40001 A:commit=rolled_back | x:
				B:lower-x A:begin+?x=1 A:insert-x-2=23503 A:commit=rolled_back | x:
			`},
		},
	},
	{
		name:     "a claim is inserted by hand, its coupon is truncated after the snapshot",
		coupons:  map[string]int{"x": 2},
		sessions: []string{"A: begin+?x insert-x-1 commit", "B: truncate"},
		byHand:   true,
		results: []result{
			{"read committed, repeatable read, serializable", `
				A:begin+?x=2 A:insert-x-1 A:commit B:truncate=23503 | x:a
				A:begin+?x=2 A:insert-x-1 B:truncate... A:commit B:truncate=23503 | x:a
				A:begin+?x=2 B:truncate... A:insert-x-1 A:commit B:truncate=23503 | x:a
				B:truncate A:begin+?x A:insert-x-1=23503 A:commit=rolled_back |
			`},
		},
	},
	{
		name:     "a coupon is renamed by hand",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin+rename-x commit", "B: x"},
		results: []result{
			{"read committed", `
				A:begin+rename-x A:commit B:x=coupon_not_found | renamed:
				A:begin+rename-x B:x... A:commit B:x=coupon_not_found | renamed:
				B:x=claimed A:begin+rename-x=23503 A:commit=rolled_back | x:b
			`},
		},
	},
	{
		name:     "a coupon is lowered in its amount by hand",
		coupons:  map[string]int{"x": 1, "y": 2},
		sessions: []string{"A: begin+lower-y commit", "B: begin+y commit", "C: x"},
		results: []result{
			{"read committed", `
				A:begin+lower-y A:commit B:begin+y=claimed B:commit C:x=claimed | x:c y:b
				A:begin+lower-y A:commit B:begin+y=claimed C:x=claimed B:commit | x:c y:b
				A:begin+lower-y A:commit C:x=claimed B:begin+y=claimed B:commit | x:c y:b
				A:begin+lower-y B:begin+y... A:commit B:begin+y=claimed B:commit C:x=claimed | x:c y:b
				A:begin+lower-y B:begin+y... A:commit B:begin+y=claimed C:x=claimed B:commit | x:c y:b
				A:begin+lower-y B:begin+y... C:x=claimed A:commit B:begin+y=claimed B:commit | x:c y:b
				A:begin+lower-y C:x=claimed A:commit B:begin+y=claimed B:commit | x:c y:b
				A:begin+lower-y C:x=claimed B:begin+y... A:commit B:begin+y=claimed B:commit | x:c y:b
				B:begin+y=claimed A:begin+lower-y... B:commit A:begin+lower-y A:commit C:x=claimed | x:c y:b
				B:begin+y=claimed A:begin+lower-y... B:commit A:begin+lower-y C:x=claimed A:commit | x:c y:b
				B:begin+y=claimed A:begin+lower-y... C:x=claimed B:commit A:begin+lower-y A:commit | x:c y:b
				B:begin+y=claimed B:commit A:begin+lower-y A:commit C:x=claimed | x:c y:b
				B:begin+y=claimed B:commit A:begin+lower-y C:x=claimed A:commit | x:c y:b
				B:begin+y=claimed B:commit C:x=claimed A:begin+lower-y A:commit | x:c y:b
				B:begin+y=claimed C:x=claimed A:begin+lower-y... B:commit A:begin+lower-y A:commit | x:c y:b
				B:begin+y=claimed C:x=claimed B:commit A:begin+lower-y A:commit | x:c y:b
				C:x=claimed A:begin+lower-y A:commit B:begin+y=claimed B:commit | x:c y:b
				C:x=claimed A:begin+lower-y B:begin+y... A:commit B:begin+y=claimed B:commit | x:c y:b
				C:x=claimed B:begin+y=claimed A:begin+lower-y... B:commit A:begin+lower-y A:commit | x:c y:b
				C:x=claimed B:begin+y=claimed B:commit A:begin+lower-y A:commit | x:c y:b
			`},
		},
	},
	{
		name:     "a coupon is truncated by hand",
		coupons:  map[string]int{"x": 1},
		sessions: []string{"A: begin+truncate commit", "B: x"},
		results: []result{
			{"read committed", `
				A:begin+truncate A:commit B:x=coupon_not_found |
				A:begin+truncate B:x... A:commit B:x=coupon_not_found |
				B:x=claimed A:begin+truncate=23503 A:commit=rolled_back | x:b
			`},
		},
	},
	{
		name:     "a coupon is deleted by hand while another transaction claims two",
		coupons:  map[string]int{"x": 1, "y": 1},
		sessions: []string{"A: begin+y x commit", "B: begin+delete-x commit"},
		results: []result{
			{"read committed", `
				A:begin+y=claimed A:x=claimed A:commit B:begin+delete-x=23503 B:commit=rolled_back | x:a y:a
				A:begin+y=claimed A:x=claimed B:begin+delete-x... A:commit B:begin+delete-x=23503 B:commit=rolled_back | x:a y:a
				A:begin+y=claimed B:begin+delete-x A:x... B:commit A:x=coupon_not_found A:commit | y:a
				A:begin+y=claimed B:begin+delete-x B:commit A:x=coupon_not_found A:commit | y:a
				B:begin+delete-x A:begin+y=claimed A:x... B:commit A:x=coupon_not_found A:commit | y:a
				B:begin+delete-x A:begin+y=claimed B:commit A:x=coupon_not_found A:commit | y:a
				B:begin+delete-x B:commit A:begin+y=claimed A:x=coupon_not_found A:commit | y:a
			`},
		},
	},
}
