// A service with the real SDK of another language, set up as docs/howto/other-languages.md says.
package main

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
)

func bounds(instrument string, boundaries ...float64) sdk.View {
	return sdk.NewView(
		sdk.Instrument{Name: instrument},
		sdk.Stream{Aggregation: sdk.AggregationExplicitBucketHistogram{Boundaries: boundaries}},
	)
}

func newProvider(ctx context.Context, instance string) (*sdk.MeterProvider, error) {
	exporter, err := otlpmetrichttp.New(ctx)
	if err != nil {
		return nil, err
	}
	identity, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "shop"), attribute.String("service.instance.id", instance)))
	if err != nil {
		return nil, err
	}
	return sdk.NewMeterProvider(
		sdk.WithResource(identity),
		sdk.WithReader(sdk.NewPeriodicReader(exporter, sdk.WithInterval(15*time.Second))),
		sdk.WithView(
			bounds("gen_ai.client.operation.duration", 0.1, 0.5, 1, 2, 5, 10, 30),
			bounds("rpc.server.call.duration", 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5),
		),
	), nil
}

func must[T any](made T, err error) T {
	if err != nil {
		panic(err)
	}
	return made
}

func main() {
	ctx := context.Background()
	provider := must(newProvider(ctx, "go"))
	meter := provider.Meter("shop")
	chat := []attribute.KeyValue{
		attribute.String("gen_ai.operation.name", "chat"),
		attribute.String("gen_ai.provider.name", "azure.ai.openai"),
		attribute.String("gen_ai.request.model", "gpt-4o"),
	}
	calls := must(meter.Float64Histogram("gen_ai.client.operation.duration", metric.WithUnit("s")))
	calls.Record(ctx, 0.75, metric.WithAttributes(chat...))
	calls.Record(ctx, 3, metric.WithAttributes(append(chat, attribute.String("error.type", "Timeout"))...))
	tokens := must(meter.Int64Histogram("gen_ai.client.token.usage", metric.WithUnit("{token}")))
	tokens.Record(ctx, 17, metric.WithAttributes(append(chat, attribute.String("gen_ai.token.type", "input"))...))
	rpcs := must(meter.Float64Histogram("rpc.server.call.duration", metric.WithUnit("s")))
	rpcs.Record(ctx, 0.25, metric.WithAttributes(
		attribute.String("rpc.method", "engine.v1.Engine/Execute"), attribute.String("rpc.response.status_code", "OK")))
	// The convention's own bounds, which are enough.
	requests := must(meter.Float64Histogram("http.server.request.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)))
	requests.Record(ctx, 0.0625, metric.WithAttributes(
		attribute.String("http.request.method", "GET"), attribute.String("http.route", "/"),
		attribute.Int("http.response.status_code", 200)))
	if err := provider.Shutdown(ctx); err != nil {
		panic(err)
	}
}
