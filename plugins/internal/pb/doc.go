// Package pb is generated from plugin.proto by `make gen`.
package pb
