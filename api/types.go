// Package api is the REST API as its clients see it: the JSON of requests and
// answers, the error, and a Go client. The paths and their meaning are those of
// Kafka Connect's REST API; what Connect does not have is marked.
package api

import (
	"fmt"
	"time"
)

// Error is an answer that is not a success. Code and Field come in headers, so
// that the body stays what Connect's clients expect.
type Error struct {
	Status  int    `json:"error_code"`
	Message string `json:"message"`
	Code    string `json:"-"` // stable and dotted, such as "source.slot_in_use"; may be ""
	Field   string `json:"-"` // the config key to change, when there is one
}

// Headers of an error beyond Connect's body.
const (
	CodeHeader  = "X-Millrace-Code"
	FieldHeader = "X-Millrace-Field"
)

// Error returns the message.
func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the worker answered %d", e.Status)
	}
	return e.Message
}

// Root is the answer of GET /.
type Root struct {
	Version        string `json:"version"` // the Kafka Connect API level
	Commit         string `json:"commit"`
	KafkaClusterID string `json:"kafka_cluster_id"`
	Server         string `json:"server"` // millrace/VERSION; ours
}

// Create is the body of POST /connectors.
type Create struct {
	Name         string            `json:"name"`
	Config       map[string]string `json:"config"`
	InitialState string            `json:"initial_state,omitempty"`
}

// Connector is a connector with its config.
type Connector struct {
	Name   string            `json:"name"`
	Config map[string]string `json:"config"`
	Tasks  []struct {
		Connector string `json:"connector"`
		Task      int    `json:"task"`
	} `json:"tasks"`
	Type string `json:"type"`
}

// State is the state of a connector or a task.
type State struct {
	ID       int    `json:"id"`
	State    string `json:"state"`
	WorkerID string `json:"worker_id"`
	Version  string `json:"version"`
	Trace    string `json:"trace,omitempty"`
}

// Status is a connector's status; the members after Type are ours.
type Status struct {
	Name      string  `json:"name"`
	Connector State   `json:"connector"`
	Tasks     []State `json:"tasks"`
	Type      string  `json:"type"`

	Condition *Condition `json:"condition"`
	Details   []Detail   `json:"details"`
	Process   *Process   `json:"process"`
	Lag       []Lag      `json:"lag"`
}

// Condition is a state under a stable code.
type Condition struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Detail is what is known of a task beyond Connect's status.
type Detail struct {
	ID        int        `json:"id"`
	Condition *Condition `json:"condition"`
	Progress  *Progress  `json:"progress"`
	Records   struct {
		Read, Written, Failed, Skipped, Retries int64
	} `json:"records"`
	Restarts int64      `json:"restarts"`
	RetryAt  *time.Time `json:"retry_at"`
}

// Progress is a task's long work.
type Progress struct {
	Phase     string `json:"phase"`
	Item      string `json:"item"`
	Done      int64  `json:"done"`
	Total     int64  `json:"total"`
	ItemsDone int    `json:"items_done"`
	Items     int    `json:"items"`
}

// Process is a connector's plugin process.
type Process struct {
	PID        int     `json:"pid"`
	RSSBytes   int64   `json:"rss_bytes"`
	CPUSeconds float64 `json:"cpu_seconds"`
	Restarts   int64   `json:"restarts"`
}

// Lag is how far a sink is behind on a partition.
type Lag struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Records   int64  `json:"records"`
}

// Plugin is a class that the worker can run.
type Plugin struct {
	Class   string `json:"class"`
	Type    string `json:"type"`
	Version string `json:"version"`
	Doc     string `json:"doc,omitempty"` // ours
}

// Topic is a topic of the log; ours.
type Topic struct {
	Name       string      `json:"name"`
	ID         string      `json:"id"`
	Internal   bool        `json:"internal"`
	Cleanup    string      `json:"cleanup"`
	Partitions []Partition `json:"partitions"`
}

// Partition is one partition of a topic: Start is its first offset, End the one
// the next record will get.
type Partition struct {
	Partition int   `json:"partition"`
	Start     int64 `json:"start"`
	End       int64 `json:"end"`
}

// Record is a record as the API shows it. Bytes that are not UTF-8 are base64,
// and Encoding says so.
type Record struct {
	Offset    int64    `json:"offset"`
	Timestamp int64    `json:"timestamp"`
	Key       *string  `json:"key"`
	Value     *string  `json:"value"`
	Encoding  string   `json:"encoding,omitempty"` // "base64" or absent
	Headers   []Header `json:"headers,omitempty"`
}

// Header is a header of a Record.
type Header struct {
	Key   string  `json:"key"`
	Value *string `json:"value"`
}

// Records is a piece of a partition; Next is the offset to go on from.
type Records struct {
	Records []Record `json:"records"`
	Next    int64    `json:"next"`
}

// Validation is the answer of PUT /connector-plugins/{p}/config/validate.
type Validation struct {
	Name       string         `json:"name"`
	ErrorCount int            `json:"error_count"`
	Groups     []string       `json:"groups"`
	Configs    []ConfigResult `json:"configs"`
	Warnings   []Warning      `json:"warnings,omitempty"` // ours
}

// Warning is a remark about a key that refuses nothing.
type Warning struct {
	Key     string `json:"key"`
	Message string `json:"message"`
}

// ConfigResult is one key of a Validation.
type ConfigResult struct {
	Definition Definition  `json:"definition"`
	Value      ConfigValue `json:"value"`
}

// Definition is the definition of a key. Kafka Connect called the member
// order_in_group "order" before 4.3: both are sent.
type Definition struct {
	Name          string   `json:"name"`
	Type          string   `json:"type"`
	Required      bool     `json:"required"`
	DefaultValue  *string  `json:"default_value"`
	Importance    string   `json:"importance"`
	Documentation string   `json:"documentation"`
	Group         *string  `json:"group"`
	OrderInGroup  int      `json:"order_in_group"`
	Order         int      `json:"order"`
	Width         string   `json:"width"`
	DisplayName   string   `json:"display_name"`
	Dependents    []string `json:"dependents"`
}

// ConfigValue is the value of a key.
type ConfigValue struct {
	Name              string   `json:"name"`
	Value             *string  `json:"value"`
	RecommendedValues []string `json:"recommended_values"`
	Errors            []string `json:"errors"`
	Visible           bool     `json:"visible"`
}

// Offsets is the body of GET and PATCH offsets.
type Offsets struct {
	Offsets []Offset `json:"offsets"`
}

// Offset is one position; a null offset removes it.
type Offset struct {
	Partition map[string]any `json:"partition"`
	Offset    map[string]any `json:"offset"`
}

// Message is an answer of one sentence.
type Message struct {
	Message string `json:"message"`
}

// Logger is the level of a logger.
type Logger struct {
	Level        string `json:"level"`
	LastModified *int64 `json:"last_modified"`
}
