package httpapi

import (
	"encoding/base64"
	"strings"
	"time"

	"warmboot"
	"warmboot/api"
)

// PageQuery asks for a part of a list. It is exported because huma sets no field of an embedded type that is not.
type PageQuery struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"How many items to give at the most."`
	Cursor string `query:"cursor" maxLength:"256" doc:"next_cursor of the last answer."`
}

const opPage = "read list"

// page is what the store is asked for: one more than is wanted, which tells whether there are more.
func (q PageQuery) page() (warmboot.Page, error) {
	p := warmboot.Page{Limit: q.Limit + 1}
	if q.Cursor == "" {
		return p, nil
	}
	text, err := q.decode()
	if err != nil {
		return p, err
	}
	at, id, _ := strings.Cut(text, " ")
	created, timeErr := time.Parse(time.RFC3339Nano, at)
	parsed, idErr := warmboot.ParseID(id)
	if timeErr != nil || idErr != nil {
		return p, badCursor()
	}
	p.After = warmboot.Place{CreatedAt: created, ID: parsed}
	return p, nil
}

// decode is the text in a cursor. What it says is nobody's business but ours, so that it can change.
func (q PageQuery) decode() (string, error) {
	text, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	if err != nil {
		return "", badCursor()
	}
	return string(text), nil
}

func badCursor() error {
	return warmboot.Errorf(warmboot.Invalid, opPage, "the cursor is none of ours; use next_cursor of an answer, or leave it out to begin anew")
}

func cursor(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// cursorOf is the cursor of the page behind an entity.
func cursorOf(createdAt time.Time, id warmboot.ID) string {
	return cursor(createdAt.UTC().Format(time.RFC3339Nano) + " " + string(id))
}

// pageOf is the answer with the items that were asked for, out of one more.
func pageOf[E, T any](all []E, limit int, out func(E) T, cursor func(E) string) *answer[api.Items[T]] {
	page := api.Items[T]{Items: make([]T, 0, min(limit, len(all)))} // an empty list is [], not null
	for i, e := range all {
		if i == limit {
			page.NextCursor = cursor(all[i-1])
			break
		}
		page.Items = append(page.Items, out(e))
	}
	return &answer[api.Items[T]]{page}
}
