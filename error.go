package warmboot

import (
	"context"
	"errors"
	"fmt"
)

// Code classifies an error for whoever must act on it. It is a contract: it decides the HTTP status, the RPC code
// and the exit code of the CLI (see codes).
type Code string

// The codes.
const (
	Invalid         Code = "invalid"         // the request can never succeed as it stands
	Unauthenticated Code = "unauthenticated" // who is asking is not known
	Denied          Code = "denied"          // who is asking may not
	NotFound        Code = "not_found"       // the thing named does not exist
	Conflict        Code = "conflict"        // it exists, or is in a state that forbids this
	Stale           Code = "stale"           // it has changed since the caller looked at it
	TooLarge        Code = "too_large"       // the request is larger than is accepted
	Exhausted       Code = "exhausted"       // a limit or a resource is used up
	ImagePull       Code = "image_pull"      // the registry does not have the image, or does not give it to us
	Unavailable     Code = "unavailable"     // not now; the same request may succeed later
	Timeout         Code = "timeout"         // it took longer than it may
	Canceled        Code = "canceled"        // the caller went away
	Corrupt         Code = "corrupt"         // stored bytes are not what was written
	Incompatible    Code = "incompatible"    // a snapshot was made by, or for, something else
	Internal        Code = "internal"        // a fault of ours
)

// Outcome is what a Code means to each kind of caller.
type Outcome struct {
	HTTP int    // status of the REST API
	RPC  string // Connect code, https://connectrpc.com/docs/protocol#error-codes
	Exit int    // exit code of the CLI
}

// codes is exhaustive; TestEveryCodeHasAnOutcome holds it to that.
var codes = map[Code]Outcome{
	Invalid:         {400, "invalid_argument", 2},
	Unauthenticated: {401, "unauthenticated", 3},
	Denied:          {403, "permission_denied", 3},
	NotFound:        {404, "not_found", 4},
	Conflict:        {409, "already_exists", 5},
	Stale:           {412, "aborted", 5},
	TooLarge:        {413, "invalid_argument", 2},
	Exhausted:       {429, "resource_exhausted", 6},
	ImagePull:       {422, "failed_precondition", 7},
	Unavailable:     {503, "unavailable", 8},
	Timeout:         {504, "deadline_exceeded", 9},
	Canceled:        {499, "canceled", 130},
	Corrupt:         {500, "data_loss", 10},
	Incompatible:    {409, "failed_precondition", 11},
	Internal:        {500, "internal", 1},
}

// Outcome returns what the code means. An unknown code is treated as Internal.
func (c Code) Outcome() Outcome {
	if o, ok := codes[c]; ok {
		return o
	}
	return codes[Internal]
}

// Error is the one error type that crosses rooms. Msg is written for a person: what happened, why, and what to do next.
type Error struct {
	Code Code
	Op   string // the verb that failed, lower case: "restore snapshot"
	Msg  string // for people; may be empty when Err says it all
	Err  error  // the cause, if there is one
}

func (e *Error) Error() string {
	s := e.Op
	add := func(t string) {
		if t == "" {
			return
		}
		if s != "" {
			s += ": "
		}
		s += t
	}
	add(e.Msg)
	if e.Err != nil {
		add(e.Err.Error())
	}
	if s == "" {
		return string(e.Code)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose message is formatted; a %w verb sets the cause without repeating it in the text.
func Errorf(code Code, op, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Code: code, Op: op, Msg: wrapped.Error(), Err: silent(errors.Unwrap(wrapped))}
}

// silentCause keeps a cause reachable by errors.Is and errors.As when the message already tells it.
type silentCause struct{ error }

func silent(err error) error {
	if err == nil {
		return nil
	}
	return silentCause{err}
}

func (s silentCause) Error() string { return "" }
func (s silentCause) Unwrap() error { return s.error }

// CodeOf returns the code of the outermost Error in err's chain; contexts map to Canceled and Timeout, nil to "".
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Internal
}
