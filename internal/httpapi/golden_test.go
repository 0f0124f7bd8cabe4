package httpapi_test

import (
	"net/http"
	"net/netip"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
)

func TestOpenAPI(t *testing.T) {
	r := newRig(t, nil)
	res, body := r.request(http.MethodGet, "/openapi.json", "")
	if res.StatusCode != http.StatusOK {
		t.Fatal(body)
	}
	golden(t, "openapi.json", []byte(body+"\n"))
}

// TestShapes shows every response of the API that has a shape, on rows whose every value is fixed.
func TestShapes(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	r.must(r.client.DeleteImage(ctx, "runtime"))
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		r.must(err)
		return v
	}
	created, used := at("2026-01-24T12:00:00Z"), at("2026-01-24T13:00:00.123456Z")
	code := 3
	img := &warmboot.Image{ID: "0195f2c4-0000-4000-8000-000000000001", Name: "runtime", KernelPath: hosttest.Root + "vmlinuz", InitrdPath: hosttest.Root + "initrd.img", RootfsPath: hosttest.Root + "rootfs.ext4", Digest: "d1ge57", SizeBytes: 400 << 20, CreatedAt: created}
	r.must(r.store.CreateImage(ctx, img))
	for _, snap := range []*warmboot.RuntimeSnapshot{
		{ID: "0195f2c4-0000-4000-8000-000000000002", RuntimeImageID: img.ID, SnapshotPath: "/srv/fc/runtime-snapshots/x", State: warmboot.SnapshotReady, FCVersion: "v1.9.0", CreatedAt: created, SuccessCount: 42, LastUsedAt: &used,
			Metadata: warmboot.SnapshotMetadata{SizeBytes: 900_000_000, MemSizeBytes: 512_000_000}},
		{ID: "0195f2c4-0000-4000-8000-000000000003", RuntimeImageID: img.ID, State: warmboot.SnapshotDeleted, FCVersion: "qemu-7.2.22", CreatedAt: created.Add(time.Hour),
			Metadata: warmboot.SnapshotMetadata{Compressed: true, CompressedSizeBytes: 1, DockerVersion: "26.1.5", VCPUs: 1, BuildSeconds: 21.5, ColdBootSeconds: 15.25, PauseSeconds: .25, Error: "Docker did not answer"}},
	} {
		r.must(r.store.CreateSnapshot(ctx, snap))
	}
	for _, c := range []*warmboot.Container{
		{ID: "0195f2c4-0000-4000-8000-000000000004", Name: "web", Image: "debian:trixie", RuntimeImageID: img.ID, State: warmboot.ContainerStopped,
			Spec: warmboot.ContainerSpec{Command: []string{"sh"}, Args: []string{"-c", "exit 3"}, EnvVars: map[string]string{"A": "<1>"}, CPULimit: .5, MemoryLimitMB: 256,
				PortMappings: []warmboot.PortMapping{{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, ContainerPort: 80, Protocol: warmboot.TCP}}},
			BootMethod: warmboot.BootWarm, VMID: "vm-3f2a9c0d1e4b", SnapshotID: "0195f2c4-0000-4000-8000-000000000002",
			Phases: []warmboot.Phase{{Name: warmboot.PhaseRestore, Duration: 80500 * time.Microsecond}}, ExitCode: &code, Error: "e", CreatedAt: created, StartedAt: &created, FinishedAt: &used},
		{ID: "0195f2c4-0000-4000-8000-000000000005", Name: "new", Image: "debian:trixie", RuntimeImageID: img.ID, State: warmboot.ContainerCreating, CreatedAt: created.Add(time.Hour)},
	} {
		r.must(r.store.CreateContainer(ctx, c))
	}
	for name, path := range map[string]string{
		"images": "/v1/images", "image": "/v1/images/runtime",
		"snapshots": "/v1/runtime-snapshots", "snapshots-all": "/v1/runtime-snapshots?all=true", "snapshot-deleted": "/v1/runtime-snapshots/0195f2c4-0000-4000-8000-000000000003",
		"containers": "/v1/containers", "containers-none": "/v1/containers?state=failed", "container": "/v1/containers/web", "container-creating": "/v1/containers/new",
		"healthz": "/healthz", "not-found": "/v1/containers/absent", "bad-id": "/v1/runtime-snapshots/x",
	} {
		_, body := r.request(http.MethodGet, path, "")
		golden(t, name+".json", indent(t, []byte(body)))
	}
}

// TestSnapshotEndpointsOfTheFoundingDocument walks through its five endpoints, with its own commands where it gives them.
func TestSnapshotEndpointsOfTheFoundingDocument(t *testing.T) {
	r := newRig(t, nil)
	one := func(method, path, body string, status int, headers ...string) map[string]any {
		t.Helper()
		res, text := r.request(method, path, body, headers...)
		if res.StatusCode != status {
			t.Fatalf("%s %s answered %d: %s", method, path, res.StatusCode, text)
		}
		return decode(t, text)
	}
	const base = "/v1/runtime-snapshots"
	create := `{"runtime_image_id": "` + r.image.ID + `"}`
	made := one(http.MethodPost, base, create, 201)
	id, _ := made["id"].(string)
	if len(made) != 1 || len(id) != 36 {
		t.Fatalf("%v", made)
	}
	r.waitReady(id)
	item := one(http.MethodGet, base+"/"+id, "", 200)["item"].(map[string]any)
	for _, field := range []string{"id", "runtime_image_id", "snapshot_path", "state", "fc_version", "created_at", "success_count", "failure_count", "last_used_at", "metadata"} {
		if _, ok := item[field]; !ok {
			t.Errorf("no %s in %v", field, item)
		}
	}
	for _, field := range []string{"size_bytes", "mem_size_bytes", "compressed"} {
		if _, ok := item["metadata"].(map[string]any)[field]; !ok {
			t.Errorf("no metadata.%s in %v", field, item)
		}
	}
	if all := one(http.MethodGet, base, "", 200); len(all) != 1 || len(all["items"].([]any)) != 1 {
		t.Errorf("%v", all)
	}
	again := one(http.MethodPost, base+"/"+id+"/rebuild", "", 200)
	next, _ := again["id"].(string)
	if len(again) != 2 || again["message"] != "Snapshot rebuild initiated" || next == id {
		t.Errorf("%v", again)
	}
	r.waitReady(next)
	if gone := one(http.MethodDelete, base+"/"+next, "", 200); len(gone) != 1 || gone["ok"] != true {
		t.Errorf("%v", gone)
	}
	if all := one(http.MethodGet, base, "", 200); len(all["items"].([]any)) != 0 {
		t.Errorf("the list has deleted ones: %v", all)
	}
	// What `curl -X POST -d` sends, as its chapter on trouble does.
	one(http.MethodPost, base, create, 201, "Content-Type: application/x-www-form-urlencoded")
}

func TestBuildTellsItsStep(t *testing.T) {
	goOn := make(chan struct{})
	r := newRig(t, heldBuild(goOn))
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	// A create that is waiting for the snapshot tells how it is: not known yet, which is null and not left out.
	made, err := r.client.CreateContainer(t.Context(), createOf("debian:trixie"))
	r.must(err)
	_, body := r.request(http.MethodGet, "/v1/containers/"+made, "")
	if v, ok := decode(t, body)["item"].(map[string]any)["boot_method"]; !ok || v != nil {
		t.Errorf("boot_method is %v in %s", v, body)
	}
	snap, err := r.client.Snapshot(t.Context(), id)
	r.must(err)
	if snap.State != "creating" || snap.Metadata.Step != "booting" && snap.Metadata.Step != "" {
		t.Errorf("%+v", snap)
	}
	close(goOn)
	c, err := r.client.WaitContainer(within(t), made, string(controlplane.WaitStarted))
	r.must(err)
	if c.BootMethod == nil || *c.BootMethod != "warm" || c.SnapshotID != id {
		t.Errorf("%+v", c)
	}
}
