; Java. What the captures mean is in c.scm.
(identifier) @name
(method_declaration body: (block) @body)
(constructor_declaration body: (constructor_body) @body)

[(method_declaration) (constructor_declaration) (block) (constructor_body) (for_statement)] @scope
[(enhanced_for_statement) (try_with_resources_statement) (catch_clause)] @scope
[(lambda_expression) (switch_block)] @scope
[(class_body) (enum_body) (interface_body)] @wall
(enhanced_for_statement value: (_) @outside)

(local_variable_declaration declarator: (variable_declarator name: (identifier) @declared))
(formal_parameter name: (identifier) @declared)
(spread_parameter (variable_declarator name: (identifier) @declared))
(catch_formal_parameter name: (identifier) @declared)
(enhanced_for_statement name: (identifier) @declared)
(resource name: (identifier) @declared)
(inferred_parameters (identifier) @declared)
(lambda_expression parameters: (identifier) @declared)

; Name spaces of their own: methods, fields after a point, annotations, labels.
(method_declaration name: (identifier) @other)
(constructor_declaration name: (identifier) @other)
(method_invocation name: (identifier) @other)
(method_reference "::" . (identifier) @other)
(field_access field: (identifier) @other)
(annotation name: (identifier) @other)
(marker_annotation name: (identifier) @other)
(element_value_pair key: (identifier) @other)
(labeled_statement . (identifier) @other)
(break_statement (identifier) @other)
(continue_statement (identifier) @other)

(type_identifier) @fixed
(scoped_identifier) @fixed
(switch_label (identifier) @fixed)
(instanceof_expression name: (identifier) @fixed)
[(type_pattern) (record_pattern)] @fixed

[(line_comment) (block_comment)] @comment
[(line_comment) (block_comment) (string_literal)] @opaque

(_ body: (block . "{" @brace))
(_ body: (constructor_body . "{" @brace))
(_ body: (switch_block . "{" @brace))
(if_statement consequence: (block . "{" @brace))
(if_statement alternative: (block . "{" @brace))
(finally_clause (block . "{" @brace))

[(line_comment) (block_comment) (explicit_constructor_invocation)] @apart

[(block) (constructor_body)] @block
(local_variable_declaration) @movable
(expression_statement
  (assignment_expression left: (identifier) @target operator: "=") @harmless) @movable
(expression_statement
  (assignment_expression
    left: (identifier) @target
    operator: ["+=" "-=" "*=" "&=" "|=" "^=" "<<=" ">>=" ">>>="]) @harmless @numeric) @movable
(expression_statement (update_expression (identifier) @target) @harmless @numeric) @movable
[(identifier) (variable_declarator) (array_initializer) (parenthesized_expression)] @harmless
[(integral_type) (floating_point_type) (boolean_type) (type_identifier)] @harmless
[(generic_type) (type_arguments) (array_type) (dimensions) (modifiers)] @harmless
[(decimal_integer_literal) (hex_integer_literal) (decimal_floating_point_literal)] @harmless
[(string_literal) (string_fragment) (escape_sequence) (character_literal)] @harmless
[(true) (false) (null_literal)] @harmless
(unary_expression operator: ["-" "+" "~" "!"]) @harmless @numeric
(binary_expression operator: ["+" "-" "*" "&" "|" "^" "<<" ">>" ">>>"]) @harmless @numeric
(binary_expression operator: ["<" ">" "<=" ">=" "==" "!="]) @harmless @numeric

(local_variable_declaration
  type: [(integral_type) (floating_point_type) (boolean_type)]
  declarator: (variable_declarator name: (identifier) @plain))
(formal_parameter
  type: [(integral_type) (floating_point_type) (boolean_type)] name: (identifier) @plain)
