package main

// unsupported are scenarios that cannot run here, and why.
var unsupported = map[string]string{
	"types-ext/unknown": "needs PostGIS and pgvector, which the test server lacks",
}

// A golden that this map does not name must come out exactly. Paths are
// topic:record/part.
var deviations = map[string][]deviation{
	"changes": {
		{path: "drop:shop.public.no_key_full", why: "no tombstone without a key"},
		{path: "shop.public.ri_index:*", why: "the key is the identity's columns; the primary key's would be made up"},
	},
	"changes/message-key": {
		{path: "shop.public.ri_default:*", why: "the rule names columns that deletes do not have, so the identity's columns are the key"},
	},
	"columns": {
		{path: "*/key/payload/id", ours: "1", why: "an excluded key column keeps its value in the key"},
		{path: "*/key/schema/fields/id/optional", ours: "false", why: "and stays required"},
	},
	"heartbeat":        {{path: "__debezium-heartbeat.shop:count", why: "timing"}},
	"heartbeat-action": {{path: "__hb.shop:count", why: "timing"}},
	"names-case":       {{path: "shop.public.plain:count", ours: "2", why: "columns that differ by case are kept"}},
	"snapshot-modes/notices": {
		{path: "notices:count", ours: "0", why: "there are no notification records"},
	},
	"source-block": {
		{path: "*/source/*", why: "raw values of another run"},
		{path: "*/ts_*", why: "raw values of another run"},
		{path: "*/id", why: "raw transaction ids of another run"},
		{path: "*runId*", why: "raw"},
		{path: "*/headers*", why: "raw run id"},
	},
	"schema-change": {},
	"types-number": {
		{path: "*/neg/parameters/scale", ours: `"-2"`, why: "a negative scale is read signed"},
		{path: "shop.public.decimals:*/neg", why: "a negative scale is read signed"},
		{path: "shop.public.floats:*/f4", ours: "1.2345679E8", why: "the shortest text, as Java has since 19"},
		{path: "*/default", ours: "<absent>", why: "nextval is no constant"},
	},
	"types-text": {
		{path: "shop.public.texts:*/n", why: "a name column has its value in the stream too"},
	},
	"types-time": {
		{path: "shop.public.times:2/value/payload/after/d", why: "dates before Christ are right in the snapshot"},
		{path: "shop.public.times_nn:*/d", why: "infinity of a date is the largest number"},
		{path: "shop.public.times:*/d", why: "infinity of a date is the largest number"},
		{path: "shop.public.stamps:*", why: "rows are read in the order of the key"},
	},
	"types-misc": {
		{path: "shop.public.shapes:*/l", why: "line has a form since 3.7"},
		{path: "shop.public.shapes:*/c", why: "circle has a form since 3.7"},
		{path: "shop.public.shapes:*/b", why: "box has a form since 3.7"},
		{path: "shop.public.shapes:*/s", why: "lseg has a form since 3.7"},
		{path: "shop.public.shapes:*/op", why: "path has a form since 3.7"},
		{path: "shop.public.shapes:*/cp", why: "path has a form since 3.7"},
		{path: "shop.public.shapes:*/pg", why: "polygon has a form since 3.7"},
	},
	"types-misc/unknown": {
		{path: "shop.public.shapes:*", why: "shapes have a form since 3.7"},
		{path: "*/type", ours: `"string"`, why: "unknown types are text"},
		{path: "shop.public.mranges:*/after/*", why: "unknown types are text"},
		{path: "shop.public.search:*/after/*", why: "unknown types are text"},
		{path: "shop.public.*:*/after/*", why: "unknown types are text"},
		{path: "shop.public.*:*/before/*", why: "unknown types are text"},
	},
	"types-user": {
		{path: "*/parameters/allowed", why: "labels are read again when a new one appears"},
	},
	"types-user/unknown": {
		{path: "*/type", ours: `"string"`, why: "unknown types are text"},
		{path: "shop.public.composites:*/p", why: "unknown types are text"},
		{path: "shop.public.*:*/after/*", why: "unknown types are text"},
		{path: "shop.public.*:*/before/*", why: "unknown types are text"},
	},
	"types-array": {
		{path: "shop.public.arr:*/value/payload/after/a*", ours: "null", why: "two dimensions do not fit the schema"},
		{path: "*/ae/items/optional", ours: "true", why: "an element of an enum array may be null"},
		{path: "shop.public.arr_more:*/ae", why: "so one null does not make the array null"},
		{path: "*/abt", ours: "<absent>", why: "bit arrays are text"},
		{path: "*/atv/items/optional", ours: "true", why: "elements are optional"},
		{path: "shop.public.arr_time:*/att[*]", why: "elements keep their precision"},
		{path: "shop.public.arr_time:*/atz[*]", why: "elements keep their precision"},
		{path: "shop.public.arr_time:*/ad[*]", ours: "2147483647", why: "infinity of a date is the largest number"},
		{path: "shop.public.arr_time:*/atsz[*]", why: "elements keep their era"},
	},
	"types-array/decimal-string": {
		{path: "shop.public.arr:*/an", ours: `["NAN","1"]`, why: "one NaN does not make the array null"},
	},
	"types-array/unknown": {
		{path: "shop.public.arr_odd:*", why: "unknown arrays are arrays of texts"},
	},
	"types-ext": {
		{path: "shop.public.geos:count", ours: "0", why: "no PostGIS here"},
		{path: "shop.public.vectors:count", ours: "0", why: "no pgvector here"},
		{path: "shop.public.exts:2/value/payload/source/snapshot", ours: `"last"`, why: "so the table is the last one"},
		{path: "shop.public.exts:*/h(order)", why: "hstore has no order"},
	},
	"defaults": {
		{path: "*/usr/default", ours: "<absent>", why: "current_user is no constant"},
		{path: "*/inf/default", ours: "<absent>", why: "infinity is wrong in the golden"},
		{path: "*/payload/before/usr", ours: "null", why: "no default stands in for null"},
		{path: "*/payload/before/inf", ours: "null", why: "no default stands in for null"},
		{path: "*/ser/default", ours: "<absent>", why: "nextval is no constant"},
		{path: "*/id/default", ours: "<absent>", why: "nextval is no constant"},
		{path: "*/x/default", ours: "<absent>", why: "nextval is no constant"},
		{path: "*/twice", ours: "<absent>", why: "the stream has no generated columns, so the snapshot leaves them out"},
	},
	"defaults/keep-null": {},
	"defaults/propagate": {
		{path: "*/parameters/__debezium.source.column.type", why: "the stream's name of the type from the start"},
		{path: "*/nfree/parameters/__debezium.source.column.*", why: "the stream's width from the start"},
		{path: "*/mn/parameters/__debezium.source.column.*", why: "the stream's width from the start"},
	},
	"defaults/propagate-types": {
		{path: "*/nfree/parameters/__debezium.source.column.*", why: "the stream's width from the start"},
		{path: "*/mn/parameters/__debezium.source.column.*", why: "the stream's width from the start"},
	},
	"transactions":       {{path: "empty:shop.transaction", why: "transactions without events are not announced"}},
	"transactions/topic": {{path: "empty:shop.tx", why: "transactions without events are not announced"}},
	"partitions": {
		{path: "shop.public.ev:*", why: "a partitioned table is not read beside its partitions"},
		{path: "shop.public.par:*", why: "nor a parent with its children's rows"},
		{path: "shop.public.ev_*", why: "nor partitions beside their root"},
		{path: "*/source/snapshot", why: "the order of tables follows from that"},
	},
}
