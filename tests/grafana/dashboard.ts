// SPDX-License-Identifier: Apache-2.0
// What a dashboard file may hold, put together from Grafana's own types of the version in compose.yaml: they describe a
// panel of any kind, so the options of the kinds that we use are joined here. What is left out has Grafana's default.
import type { AnnotationQuery, Dashboard, DashboardLink, DataTransformerConfig, FieldConfig, Panel, RowPanel } from '@grafana/schema/dist/types/raw/dashboard/x/dashboard_types.gen.d.ts';
import type { Options as BarGauge } from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen.d.ts';
import type { Options as Stat } from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts';
import type { FieldConfig as TableField, Options as Table } from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.d.ts';
import type { FieldConfig as TimeSeriesField, Options as TimeSeries } from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts';
// Since Grafana 11 the query of Prometheus is no part of the schema; it has not changed.
import type { PrometheusDataQuery as Prometheus } from 'prometheus-query/dist/esm/raw/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen.d.ts';

// An enum of strings does not accept the string that stands in a file; its values do.
type Written<T> = T extends string ? `${T}` : T extends object ? { [Key in keyof T]: Written<T[Key]> } : T;

type Kind<Name extends string, Options, Field = never> = Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets' | 'links' | 'transformations'> & {
  type: Name;
  options: Partial<Options>;
  fieldConfig: { defaults: Omit<FieldConfig, 'custom'> & { custom?: Partial<Field> }; overrides: [] };
  targets: Prometheus[];
  links: Partial<DashboardLink>[];
  transformations?: DataTransformerConfig[];
};

// The schema knows the target of Grafana's own annotations only; ours are asked of Prometheus.
type Annotation = Omit<AnnotationQuery, 'target'> & { target: Pick<Prometheus, 'expr' | 'refId'>; titleFormat: string; textFormat: string };

export type Provisioned = Written<
  Omit<Dashboard, 'panels' | 'annotations'> & {
    annotations: { list: Annotation[] };
    panels: (RowPanel | Kind<'timeseries', TimeSeries, TimeSeriesField> | Kind<'stat', Stat> | Kind<'bargauge', BarGauge> | Kind<'table', Table, TableField>)[];
  }
>;
