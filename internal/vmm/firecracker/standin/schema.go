package standin

import (
	"encoding/json"
	"fmt"
	"slices"
)

// field is a field of a request's body.
type field struct {
	name     string
	required bool
	has      func(release) bool
	object   []field // what is in it, if it is an object or a list of objects
	only     values  // what it may say, if that is checked here
}

// values are those that a field may have, and which releases know them.
type values map[string]func(release) bool

func need(name string) field { return field{name, true, always, nil, nil} }
func may(name string, has func(release) bool, object ...field) field {
	return field{name, false, has, object, nil}
}
func (f field) of(v values) field { f.only = v; return f }

var (
	bucket  = []field{need("size"), may("one_time_burst", always), need("refill_time")}
	limiter = []field{may("bandwidth", always, bucket...), may("ops", always, bucket...)}
)

// bodies are the bodies of the calls that have one. A call that is not here does not exist, if the driver has no use for it.
var bodies = map[string][]field{
	"PUT /boot-source": {need("kernel_image_path"), may("initrd_path", always), may("boot_args", always)},
	"PUT /drives/{}": {need("drive_id"), may("partuuid", always), need("is_root_device"), may("cache_type", always), may("is_read_only", always),
		may("path_on_host", always), may("rate_limiter", always, limiter...), may("io_engine", always), may("socket", always)},
	"PUT /machine-config": {need("vcpu_count"), need("mem_size_mib"), may("smt", always), may("cpu_template", always), may("track_dirty_pages", always),
		may("huge_pages", always).of(values{"None": always, "2M": always, "Transparent": from(17)})},
	"PUT /cpu-config": {may("kvm_capabilities", always), may("cpuid_modifiers", always), may("msr_modifiers", always)},
	"PUT /network-interfaces/{}": {need("iface_id"), need("host_dev_name"), may("guest_mac", always), may("mtu", from(16)),
		may("rx_rate_limiter", always, limiter...), may("tx_rate_limiter", always, limiter...)},
	"PUT /vsock":   {may("vsock_id", always), need("guest_cid"), need("uds_path")},
	"PUT /entropy": {may("rate_limiter", always, limiter...)},
	"PUT /balloon": {need("amount_mib"), need("deflate_on_oom"), may("stats_polling_interval_s", always),
		may("free_page_hinting", from(14)), may("free_page_reporting", from(14))},
	"PATCH /balloon":            {need("amount_mib")},
	"PATCH /balloon/statistics": {need("stats_polling_interval_s")},
	"PUT /metrics":              {need("metrics_path"), may("emit_id", from(17)), may("properties", from(17))},
	"PUT /logger":               {may("log_path", always), may("level", always), may("show_level", always), may("show_log_origin", always), may("module", always)},
	"PUT /serial":               {may("serial_out_path", always), may("rate_limiter", from(16), bucket...)},
	"PUT /actions":              {need("action_type")},
	"PATCH /vm":                 {need("state")},
	"PUT /snapshot/create":      {may("snapshot_type", always), need("snapshot_path"), need("mem_file_path")},
	"PUT /snapshot/load": {need("snapshot_path"), may("mem_file_path", always),
		may("mem_backend", always, need("backend_path"), need("backend_type")),
		may("enable_diff_snapshots", always), may("track_dirty_pages", from(13)), may("resume_vm", always),
		may("network_overrides", from(12), need("iface_id"), need("host_dev_name")), may("vsock_override", from(16), need("uds_path")),
		may("clock_realtime", realtime), may("huge_pages", from(17)).of(values{"Snapshot": always, "None": always, "2M": always, "Transparent": always})},
}

// readers are the calls without a body.
var readers = []string{"GET /", "GET /version", "GET /machine-config", "GET /balloon", "GET /balloon/statistics"}

// exists reports whether a release has a call at all.
func exists(r release, call string) bool {
	if call == "PUT /serial" {
		return r.from(14, 0)
	}
	return bodies[call] != nil || slices.Contains(readers, call)
}

// check reads a body as strictly as a release does, and returns why it is refused.
func check(r release, fields []field, text []byte) error {
	var list []json.RawMessage
	if json.Unmarshal(text, &list) == nil {
		for _, one := range list {
			if err := check(r, fields, one); err != nil {
				return err
			}
		}
		return nil
	}
	var body map[string]json.RawMessage
	if err := json.Unmarshal(text, &body); err != nil {
		return fmt.Errorf("the json body cannot be deserialized: %w", err)
	}
	for name, value := range body {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name && f.has(r) })
		if i < 0 {
			return fmt.Errorf("the json body cannot be deserialized: unknown field `%s`", name)
		}
		if only := fields[i].only; only != nil {
			var text string
			if json.Unmarshal(value, &text) != nil || only[text] == nil || !only[text](r) {
				return fmt.Errorf("the json body cannot be deserialized: unknown variant `%s`", value)
			}
		}
		if fields[i].object != nil && string(value) != "null" {
			if err := check(r, fields[i].object, value); err != nil {
				return err
			}
		}
	}
	for _, f := range fields {
		if _, ok := body[f.name]; f.required && !ok {
			return fmt.Errorf("the json body cannot be deserialized: missing field `%s`", f.name)
		}
	}
	return nil
}
