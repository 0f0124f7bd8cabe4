package localregistry

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestOnlyTheRightCredentialsPull(t *testing.T) {
	t.Parallel()
	r, err := Serve(t.Context(), Config{Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ref, err := name.ParseReference(r.Image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		password string
		ok       bool
	}{{"p", true}, {"q", false}} {
		img, err := remote.Image(ref, remote.WithAuth(&authn.Basic{Username: "u", Password: tt.password}))
		if (err == nil) != tt.ok {
			t.Errorf("password %q: error is %v", tt.password, err)
		}
		if err != nil {
			continue
		}
		if cfg, err := img.ConfigFile(); err != nil || cfg.OS != "linux" || len(cfg.RootFS.DiffIDs) != 1 {
			t.Errorf("config is %+v, %v", cfg, err)
		}
	}
}
