package pgtest

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestWithDatabase_connectionStringForms(t *testing.T) {
	t.Parallel()
	for connection, shown := range map[string]string{
		"postgres://me:secret@127.0.0.1:5/old?sslmode=disable":            "postgres://me:xxxxx@127.0.0.1:5/new?sslmode=disable",
		"postgresql://127.0.0.1:5/?dbname=old&user=me&password=secret":    "postgresql://127.0.0.1:5/new?user=me",
		"host=127.0.0.1 port=5 user=me password=secret dbname=old":        "host=127.0.0.1 port=5 user=me dbname=old dbname='new'",
		"host=127.0.0.1 port=5 user=me password=secret sslmode = disable": "host=127.0.0.1 port=5 user=me sslmode = disable dbname='new'",
	} {
		other := withDatabase(connection, "new")
		config, err := pgconn.ParseConfig(other)
		if err != nil {
			t.Errorf("withDatabase(%s) returned %s: %v", connection, other, err)
			continue
		}
		if config.Database != "new" || config.User != "me" || config.Password != "secret" || config.Host != "127.0.0.1" || config.Port != 5 {
			t.Errorf("withDatabase(%s) returned %s, which parses as %+v", connection, other, config)
		}
		if got := withDatabase(withoutPassword(connection), "new"); got != shown {
			t.Errorf("%s without its password is %s, want %s", connection, got, shown)
		}
		config, err = pgconn.ParseConfig(withLogin(other, "you", "word"))
		if err != nil || config.User != "you" || config.Password != "word" || config.Database != "new" {
			t.Errorf("withLogin(%s) parses as %+v, %v", other, config, err)
		}
	}
}

func TestInstance_name(t *testing.T) {
	t.Parallel()
	s := &instance{runID: "0123abcd"}
	for test, want := range map[string]string{
		"TestClaim":                               "claim",
		"TestClaim/50_at_once_on_5":               "claim_50_at_once_on_5",
		"TestA/Größe, \"quoted\"":                 "a_gr_e_quoted",
		"TestAVeryLongNameOfATestThatGoesOnAndOn": "averylongnameofatestthatgoeson",
	} {
		s.created.Store(41)
		name := s.name(test)
		if name != "coupon_test_0123abcd_42_"+want || !runName.MatchString(name) || len(name) > 63 {
			t.Errorf("%s: got name %s, want one that ends with %s", test, name, want)
		}
	}
}
