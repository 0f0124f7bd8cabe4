package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
)

// MatchHeader makes a change conditional. It is exported because huma sets no field of an embedded type that is not.
type MatchHeader struct {
	IfMatch string `header:"If-Match" maxLength:"1024" doc:"The ETag of an answer. If there has been a change since, nothing is done, and the answer is 412."`
}

// NoneMatchHeader saves an answer that the caller has.
type NoneMatchHeader struct {
	IfNoneMatch string `header:"If-None-Match" maxLength:"1024" doc:"The ETag of an answer. If nothing has changed since, the answer is 304, without a body."`
}

// found is the answer with one entity.
type found[T any] struct {
	Status int
	ETag   string `header:"ETag" doc:"Another one whenever there has been a change. For If-Match, and If-None-Match where that is taken."`
	Body   api.Item[T]
}

// etag is an entity's: a digest of what the answer tells of it. So it changes exactly when that does, with what is not in the entity's row
// too (a container's host that goes down), and nobody who changes a row has to think of it.
func etag(out any) string {
	text, err := json.Marshal(out)
	if err != nil {
		panic(err) // our own plain types
	}
	sum := sha256.Sum256(text)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// itemOf is the answer with an entity, or none if the caller has it already.
func itemOf[T any](out T, have string) *found[T] {
	f := &found[T]{Status: http.StatusOK, ETag: etag(out), Body: api.Item[T]{Item: out}}
	if have != "" && matches(strings.ReplaceAll(have, "W/", ""), f.ETag) {
		f.Status = http.StatusNotModified
	}
	return f
}

// matches reports whether a list of entity tags (RFC 9110, section 8.8.3) has one that is the very same, or is *, which is any.
func matches(list, tag string) bool {
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part == tag || part == "*" {
			return true
		}
	}
	return false
}

// ifMatch is the condition that a header makes, if there is one: that an entity still has the tag. It is checked where the entity is changed, so that
// nothing comes between.
func ifMatch[E any](header string, tag func(E) string) []func(E) error {
	if header == "" {
		return nil
	}
	return []func(E) error{func(entity E) error {
		if matches(header, tag(entity)) {
			return nil
		}
		return warmboot.Errorf(warmboot.Stale, "check If-Match", "it is not any more what the ETag in If-Match stands for; look at it again, and decide anew")
	}}
}

func (s *server) containerTag(c *warmboot.Container) string         { return etag(s.containerOut(c)) }
func (s *server) snapshotTag(snap *warmboot.RuntimeSnapshot) string { return etag(s.snapshotOut(snap)) }
func imageTag(img *warmboot.Image) string                           { return etag(imageOut(img)) }

// hostTag leaves out what a host tells of itself every few seconds: a tag that is never the same is no use to who wants to change something.
func hostTag(h *warmboot.Host) string {
	out := hostOut(h)
	out.LastSeenAt, out.Inventory = nil, api.HostInventory{}
	return etag(out)
}

// tokenTag leaves out when the token was used last.
func tokenTag(t *warmboot.Token) string {
	out := tokenOut(t)
	out.LastUsedAt = nil
	return etag(out)
}

// orNotModified describes the answer to who has the entity already.
func orNotModified(o *huma.Operation) {
	o.Responses["304"] = &huma.Response{Description: "The caller has it already."}
}

// mergePatch describes a body that is a JSON merge patch. application/json is taken too.
func mergePatch[T any](a huma.API) func(*huma.Operation) {
	return func(o *huma.Operation) {
		schema := a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
		o.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"application/merge-patch+json": {Schema: schema}, "application/json": {Schema: schema}}}
	}
}

// updated is the answer to the change of a container.
type updated struct {
	ETag string `header:"ETag"`
	Body api.UpdatedContainer
}

// updateIn reads what the schema cannot express.
func updateIn(in api.UpdateContainer) (controlplane.ContainerChange, error) {
	out := controlplane.ContainerChange{Name: in.Name, CPULimit: in.CPULimit, MemoryLimitMB: in.MemoryLimitMB}
	if in.RestartPolicy != nil {
		var policy warmboot.RestartPolicy
		if *in.RestartPolicy != "" {
			var err error
			if policy, err = warmboot.ParseRestartPolicy(*in.RestartPolicy); err != nil {
				return out, err
			}
		}
		out.RestartPolicy = &policy
	}
	if in.PortMappings != nil {
		ports, err := portsIn("update container", *in.PortMappings)
		if err != nil {
			return out, err
		}
		out.PortMappings = &ports
	}
	return out, nil
}

// atNextStart are the changes that do not take effect at once.
func atNextStart(in api.UpdateContainer, c *warmboot.Container) []string {
	names := []string{}
	add := func(name string, changed bool) {
		if changed {
			names = append(names, name)
		}
	}
	add("hostname", in.Name != nil && c.VMID != "") // the one in the microVM
	add("cpu_limit", in.CPULimit != nil)
	add("memory_limit_mb", in.MemoryLimitMB != nil)
	add("port_mappings", in.PortMappings != nil)
	return names
}
