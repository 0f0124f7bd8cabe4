package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"warmboot/api"
)

// LogStream is a container's output, line by line. It is for one goroutine; Close may come from another.
type LogStream struct {
	c    *Client
	ctx  context.Context
	body io.ReadCloser
	dec  *json.Decoder
}

// Logs streams a container's output, oldest line first, until ctx ends. tail is how many of the last lines to begin with,
// all if negative. With follow, the stream goes on until the command ends. Close it in the end.
func (c *Client) Logs(ctx context.Context, idOrName string, follow bool, tail int) (*LogStream, error) {
	path, err := ref("/v1/containers/", idOrName, fmt.Sprintf("/logs?follow=%t&tail=%d", follow, tail))
	if err != nil {
		return nil, err
	}
	res, err := c.send(ctx, http.MethodGet, path, nil, nil) //nolint:bodyclose // LogStream.Close does
	if err != nil {
		return nil, err
	}
	return &LogStream{c: c, ctx: ctx, body: res.Body, dec: json.NewDecoder(res.Body)}, nil
}

// Next returns the next line, io.EOF after the last.
func (l *LogStream) Next() (api.LogLine, error) {
	var line api.LogLine
	err := l.dec.Decode(&line)
	if err == nil || err == io.EOF {
		return line, err
	}
	return line, l.c.broken(l.ctx, err)
}

// Close ends the stream.
func (l *LogStream) Close() error { return l.body.Close() }
