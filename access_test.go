package warmboot_test

import (
	"testing"
	"time"

	"warmboot"
)

func TestRolesIncludeTheOnesBefore(t *testing.T) {
	t.Parallel()
	roles := []warmboot.Role{warmboot.RoleViewer, warmboot.RoleOperator, warmboot.RoleAdmin}
	for i, r := range roles {
		for j, other := range roles {
			if r.Includes(other) != (i >= j) {
				t.Errorf("%s includes %s: %t", r, other, r.Includes(other))
			}
		}
		for _, bad := range []warmboot.Role{"", "root", "Admin"} {
			if bad.Valid() || bad.Includes(r) || r.Includes(bad) || bad.Includes(bad) {
				t.Errorf("role %q counts for something beside %s", bad, r)
			}
		}
	}
}

func TestTokenExpires(t *testing.T) {
	t.Parallel()
	at := time.Now()
	if (&warmboot.Token{}).Expired(at) {
		t.Error("a token without an end has expired")
	}
	token := &warmboot.Token{ExpiresAt: &at}
	if token.Expired(at.Add(-1)) || !token.Expired(at) || !token.Expired(at.Add(1)) {
		t.Error("a token must be good up to its end, and not at it")
	}
}

func TestTokenNames(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{"ci": true, "local-box.lan": true, "A_1": true, "": false, "-a": false, "a b": false, "$A": false, "--auth=none": false, "warmboot serve": false, "a/b": false} {
		if err := warmboot.ValidateTokenName(name); (err == nil) != ok || err != nil && warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}
