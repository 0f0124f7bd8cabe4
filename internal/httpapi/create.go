package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/access"
)

// OnceHeader lets a create be sent again. It is exported because huma sets no field of an embedded type that is not.
type OnceHeader struct {
	Key string `header:"Idempotency-Key" maxLength:"255" doc:"Chosen by the caller, fresh for each request, like a random UUID. Sent again with the same key within a day, the request is not carried out again: what it has made is given again, with Idempotent-Replayed. With the key of another request it is refused. One that has failed may be sent again."`
}

// WaitQuery lets a create answer later.
type WaitQuery struct {
	Timeout int `query:"timeout" minimum:"1" maximum:"300" default:"60" doc:"How long to wait, in seconds. After that the answer is what was made, as it is then; it goes on."`
}

// made is the answer of a create.
type made[T any] struct {
	Again string `header:"Idempotent-Replayed" enum:"true" doc:"Set if the same request has made this before."`
	Body  T
}

// made is an answer with an id.
func (o *once) made(id warmboot.ID) *made[any] {
	return &made[any]{Again: o.again, Body: api.Created{ID: string(id)}}
}

// once is a create that may have been asked for before.
type once struct {
	id      warmboot.ID
	again   string          // "true" if it was
	request *access.Request // nil if it has no key
}

// once calls create, unless the same request was carried out before: the same operation, with the same key and the same what, by the same token. For
// the audit log it notes what was made.
func (s *server) once(ctx context.Context, key string, what any, create func(context.Context) (warmboot.ID, error)) (o once, err error) {
	q := requestOf(ctx)
	if key == "" {
		o.id, err = create(ctx)
		q.entity = string(o.id)
		return o, err
	}
	text, err := json.Marshal(what)
	if err != nil {
		return o, err
	}
	o.request = s.access.Request(q.who, q.secret, key, append([]byte(q.pattern+"\n"), text...))
	o.id, q.repeated, err = o.request.Once(ctx, create)
	if q.repeated {
		o.again = strconv.FormatBool(true)
	}
	q.entity = string(o.id)
	return o, err
}

// created makes an operation answer 201.
func created(o *huma.Operation) { o.DefaultStatus = http.StatusCreated }

// eitherOf describes the answer of an operation that waits if it is asked to: it is now, or else then.
func eitherOf[Now, Then any](a huma.API, status int) func(*huma.Operation) {
	return func(o *huma.Operation) {
		schemas := a.OpenAPI().Components.Schemas
		o.DefaultStatus = status
		o.Responses[strconv.Itoa(status)] = &huma.Response{Content: map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{OneOf: []*huma.Schema{
			schemas.Schema(reflect.TypeFor[Now](), true, ""), schemas.Schema(reflect.TypeFor[Then](), true, ""),
		}}}}}
	}
}
