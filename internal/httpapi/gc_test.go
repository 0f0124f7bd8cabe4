package httpapi_test

import (
	"testing"

	"warmboot/internal/controlplane"
)

func TestGarbageCollection(t *testing.T) {
	r := newRig(t, nil)
	r.host.Litter(controlplane.Garbage{Kind: controlplane.GarbageTemporary, Path: "/srv/fc/builds/x", Bytes: 4096})
	for i, dryRun := range []bool{true, false, false} {
		got, err := r.client.CollectGarbage(t.Context(), dryRun)
		r.must(err)
		if i == 2 {
			if len(got.Items) != 0 || got.Items == nil || got.FreedBytes != 0 {
				t.Errorf("nothing is left to remove: %+v", got)
			}
			continue
		}
		if len(got.Items) != 1 || got.Items[0].Action != "remove" || got.Items[0].Kind != "temporary" || got.Items[0].Path != "/srv/fc/builds/x" || got.FreedBytes != 4096 || got.DryRun != dryRun {
			t.Errorf("%+v", got)
		}
	}
}
