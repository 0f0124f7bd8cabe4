package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"warmboot"
)

// stampLayout has a fixed width, so that text sorts as time does.
const stampLayout = "2006-01-02T15:04:05.000000Z"

// stamp is a time as it is stored.
func stamp(t time.Time) string { return t.UTC().Format(stampLayout) }

// stampOrNull stores a missing time as NULL.
func stampOrNull(t *time.Time) any {
	if t == nil {
		return nil
	}
	return stamp(*t)
}

// timeInto reads a stored time. NULL leaves dest as it is.
type timeInto struct{ dest *time.Time }

// Scan implements sql.Scanner.
func (s timeInto) Scan(v any) error {
	switch v := v.(type) {
	case nil:
	case time.Time:
		*s.dest = v.UTC()
	case string:
		t, err := time.Parse(stampLayout, v)
		if err != nil {
			return err
		}
		*s.dest = t
	default:
		return fmt.Errorf("a time is stored as %T", v)
	}
	return nil
}

// optTimeInto reads a time that may be missing.
type optTimeInto struct{ dest **time.Time }

// Scan implements sql.Scanner.
func (s optTimeInto) Scan(v any) error {
	if v == nil {
		*s.dest = nil
		return nil
	}
	*s.dest = new(time.Time)
	return timeInto{*s.dest}.Scan(v)
}

// textInto reads text in which NULL and the empty string mean the same.
type textInto[T ~string] struct{ dest *T }

// Scan implements sql.Scanner.
func (s textInto[T]) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*s.dest = ""
	case string:
		*s.dest = T(v)
	default:
		return fmt.Errorf("text is stored as %T", v)
	}
	return nil
}

// orNull stores the empty string as NULL.
func orNull[T ~string](v T) any {
	if v == "" {
		return nil
	}
	return string(v)
}

// plain is text as every database takes it: PostgreSQL refuses what is not UTF-8, and the NUL byte, and messages may quote
// what a guest said.
func plain(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// asJSON is a value as it is stored. The values here are plain data, which always can be.
func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// jsonInto reads a value stored as JSON.
type jsonInto struct{ dest any }

// Scan implements sql.Scanner.
func (s jsonInto) Scan(v any) error {
	var text []byte
	switch v := v.(type) {
	case string:
		text = []byte(v)
	case []byte:
		text = v
	default:
		return fmt.Errorf("JSON is stored as %T", v)
	}
	if err := json.Unmarshal(text, s.dest); err != nil {
		return &warmboot.Error{Code: warmboot.Corrupt, Op: "read database", Msg: "a stored value cannot be understood; was it written by a newer warmboot?", Err: err}
	}
	return nil
}
