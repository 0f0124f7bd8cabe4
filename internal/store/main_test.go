package store_test

import (
	"testing"

	"warmboot/internal/store/pgtest"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	postgres.Start()
	postgres.End(m.Run())
}
